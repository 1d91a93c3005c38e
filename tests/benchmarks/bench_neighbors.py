"""Neighbour lists within 5 Angstrom on one core: ours, vesin, matscipy, ASE and SciPy, each on what it can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import primitive_neighbor_list
from scipy.spatial import cKDTree
from vesin import NeighborList

from gnnscale.atoms import neighbors
from tests.benchmarks.measure import Table, in_turn

CUTOFF, ROUNDS = 5.0, 5
SLOW = 1.0  # seconds: a candidate that takes longer is timed once


def main() -> Table:
    rng = np.random.default_rng(0)
    cases = {
        "bulk Cu 864": [crystal(6)],
        "bulk Cu 10,976": [crystal(14)],
        "300 periodic, ~34 atoms": [scattered(rng, int(n), 0.06, True) for n in rng.integers(20, 49, 300)],
        "300 molecules, ~25 atoms": [scattered(rng, int(n), 0.05, False) for n in rng.integers(10, 41, 300)],
    }
    return Table(
        f"Neighbour lists within {CUTOFF:g} Angstrom, one core, all edges checked to be as many",
        [row for name, structures in cases.items() for row in rows(name, structures)],
    )


def rows(name: str, structures: list[Atoms]) -> list[dict]:
    found = candidates(structures)
    edges, quick = found["ours"](), {}
    for candidate, run in found.items():
        began = time.process_time()
        assert run() == edges, candidate
        quick[candidate] = time.process_time() - began
    once = {candidate: seconds for candidate, seconds in quick.items() if seconds > SLOW}
    timed = in_turn({candidate: run for candidate, run in found.items() if candidate not in once}, ROUNDS)
    seconds = {
        candidate: timed[candidate].seconds.median if candidate in timed else once[candidate] for candidate in found
    }
    atoms = sum(map(len, structures))
    return [
        {
            "structures": name,
            "list": candidate,
            "atoms / s": atoms / each,
            "us / structure": 1e6 * each / len(structures),
            "edges / atom": edges / atoms,
            "time / ours": each / seconds["ours"],
            "least": timed[candidate].ratio.low if candidate in timed else None,
            "most": timed[candidate].ratio.high if candidate in timed else None,
        }
        for candidate, each in seconds.items()
    ]


def candidates(structures: list[Atoms]) -> dict[str, Callable[[], int]]:
    """Each returns the number of edges; all make receivers, senders and shifts (SciPy: no shifts, molecules only)."""
    positions, ptr = np.concatenate([s.positions for s in structures]), np.cumsum([0, *map(len, structures)])
    cells, pbc = np.stack([s.cell.array for s in structures]), np.stack([s.pbc for s in structures])
    vesin = NeighborList(cutoff=CUTOFF, full_list=True, sorted=False, n_threads=1)
    single = [(s.positions, s.cell.array, s.pbc) for s in structures]
    runs: dict[str, Callable[[], int]] = {
        "ours": lambda: len(neighbors.batch_edges(positions, ptr, cells, pbc, CUTOFF).senders),
        "ours, counting alone": lambda: int(neighbors.count_edges(positions, ptr, cells, pbc, CUTOFF).sum()),
        "vesin": lambda: sum(len(vesin.compute(*one, "PS", copy=False)[0]) for one in single),
        "ASE": lambda: sum(len(ase(one)[0]) for one in single),
    }
    if (matscipy := of_matscipy()) is not None:
        runs["matscipy"] = lambda: sum(len(matscipy("ijS", s, CUTOFF)[0]) for s in structures)
    if not pbc.any():
        runs["SciPy cKDTree"] = lambda: sum(len(pairs(s.positions)) for s in structures)
    return runs


def ase(one: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Any:
    positions, cell, pbc = one
    return primitive_neighbor_list("ijS", pbc, cell, positions, CUTOFF)


def of_matscipy() -> Callable | None:
    try:
        from matscipy.neighbours import neighbour_list
    except ImportError:  # it is no requirement of ours
        return None
    return neighbour_list


def pairs(positions: np.ndarray) -> np.ndarray:
    half = cKDTree(positions).query_pairs(CUTOFF, output_type="ndarray")
    both = np.concatenate([half, half[:, ::-1]])
    return both[np.lexsort((both[:, 1], both[:, 0]))]


def crystal(repeats: int) -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat(repeats)
    atoms.rattle(0.05, seed=0)
    return atoms


def scattered(rng: np.random.Generator, count: int, density: float, periodic: bool) -> Atoms:
    side = (count / density) ** (1 / 3)
    cell = np.eye(3) * side + rng.normal(scale=0.05 * side, size=(3, 3))
    return Atoms(f"H{count}", rng.random((count, 3)) @ cell, cell=cell, pbc=periodic)
