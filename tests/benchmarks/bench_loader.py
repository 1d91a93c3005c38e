"""Structures per second with their edges as tensors, against the usual way, and what a training step waits for data."""

from __future__ import annotations

import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import lmdb
import numpy as np
import torch
from ase import Atoms
from torch.utils.data import Dataset
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.atoms.structure import Structure
from gnnscale.contract.dataset_card import Split
from gnnscale.data.loading import batch_plan
from gnnscale.data.loading.corpus import (
    STORAGE_BACKENDS,
    Corpus,
    StorageBackend,
    count_labels,
    make_batch,
    make_batch_of_share,
)
from gnnscale.data.loading.prefetch import make_ahead
from gnnscale.data.storage import adios, mapped
from gnnscale.models.registry import build
from tests.benchmarks.bench_neighbors import CUTOFF, scattered
from tests.benchmarks.measure import Table, in_turn

STRUCTURES, BATCH, STEPS, MODEL = 2000, 32, 12, EGNNConfig(width=64, depth=3)


def main() -> Table:
    rng = np.random.default_rng(0)
    atoms = [scattered(rng, int(n), 0.06, bool(k % 2)) for k, n in enumerate(rng.integers(10, 50, STRUCTURES))]
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        structures = [labelled(rng, k, each) for k, each in enumerate(atoms)]
        adios.write(root / "shards", structures, Split(), CUTOFF)
        corpus = of_all(mapped.open_shards(root / "shards"), "map")
        pickled = of_pickles(root / "pickled", corpus)
        size = {"ours": used(root / "shards"), "pickles": used(root / "pickled")}
        order = [batch_plan.global_batch(step, STRUCTURES, BATCH, 0) for step in range(STRUCTURES // BATCH)]
        chosen = np.concatenate(order)
        runs: dict[str, Callable[[], object]] = {
            "LMDB of pickled Data with their edges, DataLoader": lambda: consume(
                DataLoader(pickled, BATCH, sampler=chosen)
            ),
            "ours, shards mapped": lambda: consume(make_batch(corpus, part) for part in order),
            "ours, in memory": (lambda held: lambda: consume(make_batch(held, part) for part in order))(
                of_all(mapped.open_shards(root / "shards"), "memory")
            ),
            "ours, shards mapped, without edges": lambda: consume(corpus.select(part) for part in order),
        }
        rows, base = [], None
        for name, timing in in_turn(runs, rounds=5).items():
            per_second = len(chosen) / timing.seconds.median
            base = base or per_second
            kind = "pickles" if "pickled" in name else "ours"
            rows.append(
                {
                    "what": name,
                    "structures / s": per_second,
                    "to the first": per_second / base,
                    "bytes / structure": size[kind] / STRUCTURES,
                }
            )
        rows += [waiting(corpus, workers) for workers in (0, 1, 2)]
    mean = corpus.atoms / STRUCTURES, corpus.edges / corpus.atoms
    title = (
        f"{STRUCTURES} structures of {mean[0]:.0f} atoms with {mean[1]:.0f} neighbours, random batches of {BATCH}, CPU seconds; "
        f"then a training step of EGNN, W = {MODEL.width}, on {len(os.sched_getaffinity(0))} core(s), by the clock"
    )
    return Table(title, rows)


def labelled(rng: np.random.Generator, k: int, atoms: Atoms) -> Structure:
    cell = atoms.cell.array if atoms.pbc.any() else np.zeros((3, 3))
    return Structure(
        atoms.numbers,
        atoms.positions,
        cell,
        atoms.pbc,
        1.0,
        rng.normal(size=(len(atoms), 3)),
        np.full((3, 3), np.nan),
        f"group {k}",
    )


def of_all(there: mapped.Shards, data: StorageBackend) -> Corpus:
    row = np.arange(len(there))
    return Corpus(
        (STORAGE_BACKENDS[data](there, row),),
        row,
        np.zeros(len(row), np.int64),
        ("all",),
        (),
        CUTOFF,
        there.natoms,
        there.nedges,
        count_labels(there, row),
    )


class Pickles(Dataset):
    """The way of HydraGNN and many others: each structure a pickled Data, its edges made once and stored with it."""

    def __init__(self, path: Path):
        self.reader = lmdb.open(str(path), readonly=True, lock=False).begin()

    def __len__(self) -> int:
        return STRUCTURES

    def __getitem__(self, k: int) -> Data:
        return pickle.loads(self.reader.get(int(k).to_bytes(4, "big")))


def of_pickles(path: Path, corpus: Corpus) -> Pickles:
    with lmdb.open(str(path), map_size=1 << 32) as environment, environment.begin(write=True) as writer:
        for k in range(STRUCTURES):
            graphs, labels = make_batch(corpus, np.array([k]))
            data = Data(
                x=graphs.numbers,
                pos=graphs.positions,
                cell=graphs.cell,
                energy=labels.energy,
                forces=labels.forces,
                edge_index=torch.stack([graphs.senders, graphs.receivers]),
                edge_shifts=graphs.shifts,
            )
            writer.put(k.to_bytes(4, "big"), pickle.dumps(data))
    return Pickles(path)


def used(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())


def consume(made: Iterator) -> None:
    for _ in made:
        pass


def waiting(corpus: Corpus, workers: int) -> dict:
    """Measure how long a training step waits for its batch; the first step, which has none before it, counts apart."""
    torch.manual_seed(0)
    model = build(MODEL, 1, corpus.edges / corpus.atoms)
    plan = ((step, [batch_plan.global_batch(step, STRUCTURES, BATCH, 0)]) for step in range(STEPS))
    waited = worked = 0.0
    for step, parts in make_ahead(plan, partial(make_batch_of_share, corpus), workers):
        began = time.perf_counter()
        graphs, labels = parts[0]()
        ready = time.perf_counter()
        said = model(graphs)
        (said.energy.sum() + (said.forces - labels.forces).abs().sum()).backward()
        if step:
            waited, worked = waited + ready - began, worked + time.perf_counter() - ready
    return {
        "what": f"training step, {workers} thread(s) ahead",
        "waiting %": 100 * waited / (waited + worked),
        "ms / step": 1e3 * (waited + worked) / (STEPS - 1),
    }
