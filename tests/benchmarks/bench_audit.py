"""The audit of converted data on one core: structures a second for each kind, what it spends them on, memory."""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

from gnnscale.atoms.structure import Structure
from gnnscale.audit import duplicates, measure
from gnnscale.audit.run_checks import run_checks
from gnnscale.contract.dataset_card import Split
from gnnscale.contract.settings import AuditSettings
from gnnscale.data.storage import adios, mapped
from tests.benchmarks.measure import Table

CUTOFF = 5.0
KINDS = {  # name -> (structures, atoms, Angstrom^3 of a crystal's atom or None)
    "molecules of 12 atoms": (20_000, 12, None),
    "molecules of 27 atoms": (10_000, 27, None),
    "crystals of 8 atoms": (10_000, 8, 15.0),
    "crystals of 32 atoms": (4_000, 32, 15.0),
}


def main() -> Table:
    rows = []
    for name, (count, atoms, volume) in KINDS.items():
        rng = np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shards"
            adios.write(path, [structure(rng, k, atoms, volume) for k in range(count)], Split(), CUTOFF)
            opened = mapped.open_shards(path)
            began = time.process_time()
            for packed in duplicates.iterate_blocks(opened):
                duplicates.describe_structures(packed)
            describing = time.process_time() - began
            began = time.process_time()
            source = measure.measure_source("one", path)
            measuring = time.process_time() - began
            began = time.process_time()
            run_checks([source], AuditSettings())
            judging = time.process_time() - began
            tracemalloc.start()
            run_checks([measure.measure_source("one", path)], AuditSettings())
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        rows.append(
            {
                "kind": name,
                "structures": count,
                "structures/s": count / (measuring + judging),
                "share of fingerprints": describing / (measuring + judging),
                "share of checks": judging / (measuring + judging),
                "peak, MB": peak / 1e6,
            }
        )
    return Table("Audit of converted data, one core (CPU time)", rows)


def structure(rng: np.random.Generator, number: int, atoms: int, volume: float | None) -> Structure:
    side = int(np.ceil(atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), -1).reshape(-1, 3)[:atoms]
    spacing = 1.45 if volume is None else (volume * atoms) ** (1 / 3) / side
    cell = np.zeros((3, 3)) if volume is None else np.eye(3) * spacing * side
    forces = rng.normal(size=(atoms, 3))
    return Structure(
        rng.choice([1, 6, 7, 8], atoms),
        grid * spacing + rng.normal(size=(atoms, 3)) * 0.05,
        cell,
        np.full(3, volume is not None),
        float(rng.normal()),
        forces - forces.mean(0),
        np.full((3, 3), np.nan),
        f"group {number // 20}",
    )
