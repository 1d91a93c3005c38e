"""Random structures for tests, batches of them without the data pipeline, and a brute-force neighbour oracle."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

from gnnscale.atoms.graph import AtomGraphs
from gnnscale.atoms.neighbors import find_edges

CUTOFF = 3.0  # Angstrom; short, so that small structures have edges that cross it
ELEMENTS = np.array([1, 6, 8, 29])


class Sample(NamedTuple):
    numbers: np.ndarray  # (A,)
    positions: np.ndarray  # (A, 3) Angstrom
    cell: np.ndarray  # (3, 3) Angstrom, zero rows where there is no lattice vector
    pbc: np.ndarray  # (3,) bool
    source: int = 0


def scatter_atoms(rng: np.random.Generator, count: int, cell: np.ndarray | None, least: float = 0.7) -> np.ndarray:
    """Return positions with a least distance, as the network's 1/r is steep where atoms collide."""
    images = [np.zeros(3)]
    if cell is not None:
        images = [np.array(shift) @ cell for shift in itertools.product((-1, 0, 1), repeat=3)]
    points: list[np.ndarray] = []
    for _ in range(5000):
        point = rng.random(3) @ cell if cell is not None else rng.uniform(-1, 1, 3) * count ** (1 / 3) * 1.2
        if all(np.linalg.norm(point + image - other) > least for other in points for image in images):
            points.append(point)
        if len(points) == count:
            return np.array(points)
    raise AssertionError(f"no room for {count} atoms in {cell}")


def make_molecule(rng: np.random.Generator, count: int) -> Sample:
    numbers, positions = rng.choice(ELEMENTS, count), scatter_atoms(rng, count, None)
    return Sample(numbers, positions, np.zeros((3, 3)), np.zeros(3, bool), int(rng.integers(2)))


def make_crystal(rng: np.random.Generator, count: int) -> Sample:
    """Make a crystal with a skew cell, usually smaller than the cutoff, so that atoms see images, also their own."""
    while True:
        cell = np.diag(rng.uniform(2.2, 3.6, 3)) + rng.normal(scale=0.5, size=(3, 3))
        if abs(np.linalg.det(cell)) > 10:
            break
    numbers, positions = rng.choice(ELEMENTS, count), scatter_atoms(rng, count, cell)
    return Sample(numbers, positions, cell, np.ones(3, bool), int(rng.integers(2)))


seeds = st.integers(0, 2**32 - 1)
generators = seeds.map(np.random.default_rng)
molecules = st.builds(make_molecule, generators, st.integers(1, 8))
crystals = st.builds(make_crystal, generators, st.integers(1, 4))
structures = st.one_of(molecules, crystals)


def make_orthogonal(rng: np.random.Generator) -> np.ndarray:
    """Return a random rotation, with or without a reflection."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.diag(r))


def make_batch(samples: list[Sample], cutoff: float = CUTOFF, dtype: torch.dtype = torch.float64) -> AtomGraphs:
    first = np.cumsum([0] + [len(sample.numbers) for sample in samples])
    found = [find_edges(sample.positions, sample.cell, sample.pbc, cutoff) for sample in samples]
    join = lambda parts: torch.from_numpy(np.concatenate(parts))  # noqa: E731
    return AtomGraphs(
        numbers=join([sample.numbers for sample in samples]).long(),
        positions=join([sample.positions for sample in samples]).to(dtype),
        structure=torch.repeat_interleave(torch.arange(len(samples)), torch.from_numpy(np.diff(first))),
        cell=torch.from_numpy(np.stack([sample.cell for sample in samples])).to(dtype),
        source=torch.tensor([sample.source for sample in samples]),
        receivers=join([i + start for (i, _, _), start in zip(found, first, strict=False)]).long(),
        senders=join([j + start for (_, j, _), start in zip(found, first, strict=False)]).long(),
        shifts=join([shifts for _, _, shifts in found]),
    )


def brute_force_edges(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> list[tuple[int, int, int, int, int]]:
    """Return all (i, j, s1, s2, s3), sorted, by trying every image that could be near.

    Unit vectors normal to the lattice complete it, so that planes have a spacing also where the cell has no vector.
    """
    periodic = np.flatnonzero(pbc)
    full = np.eye(3)
    if len(periodic):
        normals = np.linalg.svd(cell[periodic])[2][len(periodic) :]
        full[periodic], full[np.flatnonzero(~np.asarray(pbc))] = cell[periodic], normals
    inverse = np.linalg.inv(full)
    reach = cutoff * np.linalg.norm(inverse, axis=0) + np.ptp(positions @ inverse, axis=0)
    ranges = [range(-int(n) - 1, int(n) + 2) if axis in periodic else (0,) for axis, n in enumerate(reach)]
    shifts = np.array(list(itertools.product(*ranges)))
    lattice = np.where(np.asarray(pbc)[:, None], cell, 0)
    d = positions[None, :, None] + (shifts @ lattice)[None, None] - positions[:, None, None]  # (A, A, S, 3)
    near = np.linalg.norm(d, axis=-1) < cutoff
    near[:, :, np.flatnonzero(~shifts.any(1))] &= ~np.eye(len(positions), dtype=bool)[:, :, None]
    return sorted((int(i), int(j), *map(int, shifts[s])) for i, j, s in np.argwhere(near))
