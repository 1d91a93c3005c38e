"""Structures of several sources by number, and any selection of them as one batch of tensors with its neighbours.

Only a few numbers of each structure are held. When a batch is made, atoms are gathered from where they are stored (see
STORAGE_BACKENDS) and edges are searched, which is faster than reading them. A training of several epochs keeps both, if
they are small enough (see held.py).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch

from gnnscale.atoms import neighbors
from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.contract import errors, files
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.contract.results import StageResult
from gnnscale.data.loading.held import MOST_BYTES, HeldStructures, count_bytes
from gnnscale.data.storage import mapped, splits
from gnnscale.data.storage.packed import HAS_STRESS, PER_ATOM, Packed, concatenate, concatenate_ranges, narrow
from gnnscale.machine.rank_env import read_ranks

ATOM_COST, EDGE_COST = 3.0, 2.0  # predicted time of a training step, in arbitrary units, per atom and per edge
STRUCTURES_PER_BLOCK = 8192  # that are examined at a time
StorageBackend = Literal["map", "memory", "store"]


class StructureReader(Protocol):
    """A reader of the structures of one source: from shards on disk, arrays in memory, or the memory of several nodes."""

    def select(self, chosen: np.ndarray) -> Packed: ...


class LoadedSource(NamedTuple):
    """Structures in the memory of this process."""

    packed: Packed
    ptr: np.ndarray  # (S + 1,)

    def select(self, chosen: np.ndarray) -> Packed:
        return select_structures(self.packed, chosen, self.ptr)


class Corpus(NamedTuple):
    """S structures of one split or a subset of it, numbered through all sources; it has some 20 bytes of each."""

    readers: tuple[StructureReader, ...]  # one per source
    row: np.ndarray  # (S,) number of the structure in its reader; this and the next are as narrow as their values allow
    source: np.ndarray  # (S,) index into `names` and `readers`
    names: tuple[str, ...]
    cards: tuple[ShardCard, ...]
    cutoff: float  # Angstrom
    natoms: np.ndarray  # (S,) int32
    nedges: np.ndarray  # (S,) uint32, at this cutoff
    labels: np.ndarray  # (S, 3) unsigned: number of known values of energy, forces, stress
    held: HeldStructures | None = None  # batches are kept here

    def __len__(self) -> int:
        return len(self.source)

    @property
    def atoms(self) -> int:
        return int(self.natoms.sum(dtype=np.int64))

    @property
    def edges(self) -> int:
        return int(self.nedges.sum(dtype=np.int64))

    def costs(self, chosen: np.ndarray) -> np.ndarray:
        return ATOM_COST * self.natoms[chosen] + EDGE_COST * self.nedges[chosen].astype(float)

    def select(self, chosen: np.ndarray) -> Packed:
        """Return the chosen structures, of any sources, in the given order."""
        chosen = np.asarray(chosen, np.int64)
        order = np.argsort(self.source[chosen], kind="stable")
        source, row = self.source[chosen][order], self.row[chosen][order].astype(np.int64)
        present = np.flatnonzero(np.bincount(source))  # np.unique would import numpy.ma, for 20 ms
        found = [self.readers[index].select(row[source == index]) for index in present]
        if len(found) <= 1:
            return found[0] if found else self.readers[0].select(row)
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return select_structures(concatenate(found), back)


def load_corpus(
    directories: dict[str, Path],
    split: str,
    cutoff: float,
    structures: int | None = None,
    subset_seed: int = 0,
    backend: StorageBackend = "map",
    threads: int = 1,
    subset: Literal["random", "prefix"] = "random",
    hold: bool = False,
) -> Corpus:
    """Load one split of several converted datasets, or a nested subset of it; `hold` it in memory if it is small enough."""
    names, cards, found, rows = tuple(directories), list[ShardCard](), list[mapped.Shards](), list[np.ndarray]()
    for directory in directories.values():
        cards.append(files.read_model(directory / "card.json", ShardCard))
        found.append(
            mapped.open_shards(directory / "shards", check=read_ranks().rank == 0 and not is_unchanged(directory))
        )
        rows.append(np.flatnonzero(found[-1].split == splits.NAMES.index(split)))
    source = np.repeat(np.arange(len(names)), [len(row) for row in rows])
    if structures is not None and structures < len(source):
        chosen = splits.choose_subset(source, names, structures, subset_seed, subset)
        source, row = source[chosen], np.concatenate(rows)[chosen]
        rows = [row[source == index] for index in range(len(names))]
    readers, new_rows, columns = list[StructureReader](), [], []
    for shards, card, row in zip(found, cards, rows):
        nedges = shards.nedges[row] if card.cutoff == cutoff else count_edges(shards, row, cutoff, threads)
        columns.append((shards.natoms[row], nedges, count_labels(shards, row)))
        readers.append(STORAGE_BACKENDS[backend](shards, row))
        new_rows.append(row if backend == "map" else np.arange(len(row)))
    natoms, nedges, labels = (np.concatenate(column) for column in zip(*columns))
    row, source, labels = narrow(np.concatenate(new_rows)), narrow(source), narrow(labels)
    corpus = Corpus(tuple(readers), row, source, names, tuple(cards), cutoff, natoms, nedges, labels)
    return hold_structures(corpus) if hold and count_bytes(natoms, nedges) <= MOST_BYTES else corpus


def hold_structures(corpus: Corpus) -> Corpus:
    """Return the corpus with all its structures and edges in the memory of this rank."""
    held = HeldStructures(corpus.natoms, corpus.nedges, corpus.source)
    held.fill(partial(read_batch, corpus))
    return Corpus(*corpus[:-1], held)


def _spread_over_nodes(shards: mapped.Shards, row: np.ndarray) -> StructureReader:
    from gnnscale.data.storage.node_store import NodeStore

    return NodeStore(shards, row)


def _load_into_memory(shards: mapped.Shards, row: np.ndarray) -> StructureReader:
    packed = shards.select(row)
    return LoadedSource(packed, packed.ptr)


STORAGE_BACKENDS: dict[StorageBackend, Callable[[mapped.Shards, np.ndarray], StructureReader]] = {
    "map": lambda shards, row: shards,
    "memory": _load_into_memory,
    "store": _spread_over_nodes,
}


def close_corpora(*corpora: Corpus) -> None:
    """Release the memory that ranks hold together. All ranks must call it, after their last batch."""
    stores = [reader for corpus in corpora for reader in corpus.readers if hasattr(reader, "close")]
    for store in stores:
        store.close()
    if stores:
        from gnnscale.data.storage.node_store import finalize_mpi

        finalize_mpi()


def is_unchanged(directory: Path) -> bool:
    """Tell whether the files of a stage have the times that its result.json notes, so that nothing was altered since."""
    try:
        outputs = files.read_model(directory / "result.json", StageResult).outputs
        return all((directory / name).stat().st_mtime_ns == file.mtime_ns for name, file in outputs.items())
    except (OSError, errors.BadFile):
        return False


def count_edges(reader: StructureReader, row: np.ndarray, cutoff: float, threads: int = 1) -> np.ndarray:
    """Count the edges of each structure at a cutoff other than that of the conversion: (S,) uint32."""
    blocks = [row[begin : begin + STRUCTURES_PER_BLOCK] for begin in range(0, len(row), STRUCTURES_PER_BLOCK)]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        found = list(pool.map(partial(_count_edges_of, reader, cutoff), blocks))
    return np.concatenate([np.empty(0, np.uint32), *found])


def _count_edges_of(reader: StructureReader, cutoff: float, row: np.ndarray) -> np.ndarray:
    packed = reader.select(row)
    return neighbors.count_edges(packed.positions, packed.ptr, packed.cell, packed.pbc, cutoff).astype(np.uint32)


def count_labels(shards: mapped.Shards, row: np.ndarray) -> np.ndarray:
    """Count the known values of energy, forces and stress of each structure; a stress needs a cell: (S, 3) int32.

    Structures are read only where the totals do not tell: if a source has forces for some atoms only, or a stress.
    """
    natoms, total = shards.natoms[row], shards.manifest.total
    train = shards.split[row] == splits.NAMES.index("train")
    known = np.zeros((len(row), 3), np.int32)
    known[:, 0] = np.isfinite(shards.energy[row])
    whole = train.all() and total.forces == 3 * total.counts["train"].atoms
    known[:, 1] = 3 * natoms if whole else 0
    unsure = (shards.flags[row] & HAS_STRESS > 0) | ~(whole or (train.all() and not total.forces))
    to_read = np.flatnonzero(unsure)
    for begin in range(0, len(to_read), STRUCTURES_PER_BLOCK):
        block = to_read[begin : begin + STRUCTURES_PER_BLOCK]
        known[block] = count_known(shards.select(row[block]))
    return known


def count_known(packed: Packed) -> np.ndarray:
    """Count the known values of each kind, by which the sums of penalties are divided: (S, 3)."""
    forces = np.concatenate([[0], np.cumsum(np.isfinite(packed.forces).sum(1))])  # (A + 1,)
    stress = np.isfinite(packed.stress) & (np.linalg.det(packed.cell) != 0)[:, None, None]
    return np.stack([np.isfinite(packed.energy), np.diff(forces[packed.ptr]), stress.sum((1, 2))], axis=1)


def select_structures(packed: Packed, chosen: np.ndarray, ptr: np.ndarray | None = None) -> Packed:
    ptr = packed.ptr if ptr is None else ptr
    atoms = concatenate_ranges(ptr[chosen], ptr[chosen + 1] - ptr[chosen])
    return Packed(*(a[atoms] if n in PER_ATOM else a[chosen] for n, a in packed._asdict().items()))


def make_batch(corpus: Corpus, chosen: np.ndarray) -> tuple[AtomGraphs, Properties]:
    """Return the chosen structures as one graph, with labels in physical units (energy float64, the rest float32)."""
    return read_batch(corpus, chosen) if corpus.held is None else corpus.held.make_batch(chosen)


def read_batch(corpus: Corpus, chosen: np.ndarray) -> tuple[AtomGraphs, Properties]:
    """Gather the chosen structures from where they are stored, and search their edges."""
    packed, capacity = corpus.select(chosen), int(corpus.nedges[chosen].sum(dtype=np.int64))
    found = neighbors.batch_edges(packed.positions, packed.ptr, packed.cell, packed.pbc, corpus.cutoff, capacity)
    graphs = AtomGraphs(
        numbers=torch.from_numpy(packed.numbers.astype(np.int64)),
        positions=torch.from_numpy(packed.positions),
        structure=torch.from_numpy(np.repeat(np.arange(len(chosen)), packed.natoms)),
        cell=torch.from_numpy(packed.cell),
        source=torch.from_numpy(corpus.source[chosen].astype(np.int64)),
        receivers=torch.from_numpy(found.receivers),
        senders=torch.from_numpy(found.senders),
        shifts=torch.from_numpy(found.shifts),
    )
    labels = Properties(
        energy=torch.from_numpy(packed.energy),
        forces=torch.from_numpy(packed.forces),
        stress=torch.from_numpy(packed.stress),
    )
    return graphs, labels


def make_batch_of_share(corpus: Corpus, chosen: np.ndarray, pin: bool = False) -> tuple[AtomGraphs, Properties]:
    """Return the batch of a rank's share; an empty share becomes one structure without labels, so that the rank takes part."""
    graphs, labels = make_batch(corpus, chosen if len(chosen) else np.zeros(1, np.int64))
    if not len(chosen):
        labels = change_each(labels, lambda label: torch.full_like(label, torch.nan))
    if pin:
        graphs = AtomGraphs(*(tensor.pin_memory() for tensor in graphs))
        labels = change_each(labels, torch.Tensor.pin_memory)
    return graphs, labels


def change_each(labels: Properties, change: Callable[[torch.Tensor], torch.Tensor]) -> Properties:
    """Return the labels with each tensor changed; a stress that is None stays None."""
    stress = None if labels.stress is None else change(labels.stress)
    return Properties(change(labels.energy), change(labels.forces), stress)
