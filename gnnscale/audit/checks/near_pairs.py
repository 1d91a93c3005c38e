"""Pairs of near structures with the same atoms, between which the energy changes by the work of the forces and the stress.

For a surface that is quadratic between the two, the mean of the labels at both ends gives the change of energy exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gnnscale.audit.measure import BAD_ENERGY, BAD_FORCES, BAD_GEOMETRY, BAD_STRESS, MeasuredSource
from gnnscale.data.storage.packed import Packed

MAX_CONSECUTIVE = 2048  # pairs of neighbours in the raw files, spread evenly over all of them
ATOMS_PER_COMPOSITION, ATOMS_OF_PAIRS = 300_000, 1_500_000  # of all pairs in the sample of one composition; in total
MAX_SAMPLE = 180  # structures of one composition
ATOMS_PER_PIECE = 100_000  # whose changes are computed together
MAX_STEP_ANGSTROM = 0.6  # of one atom; over longer steps the mean of two forces is a poor estimate
MAX_STRAIN, MAX_TURN = 0.06, 0.02  # of the lattice from one structure to the other
MIN_STRAIN = 1e-5  # smaller ones are rounding


class NearPairs(NamedTuple):
    """Changes between the structures of P pairs."""

    natoms: np.ndarray  # (P,)
    volume: np.ndarray  # (P,) Angstrom^3, 0 without a cell
    step: np.ndarray  # (P,) Angstrom, largest displacement of an atom
    change: np.ndarray  # (P,) eV, of the energy
    force_work: np.ndarray  # (P,) eV, change of energy that the forces explain; NaN without forces
    strain: np.ndarray  # (P, 3, 3) symmetric
    tension: np.ndarray  # (P, 3, 3) eV, mean of stress times volume; NaN without stress

    @property
    def is_strained(self) -> np.ndarray:
        return np.abs(self.strain).max((1, 2)) > MIN_STRAIN  # (P,)

    def select(self, which: np.ndarray) -> NearPairs:
        return NearPairs(*(values[which] for values in self))


def measure_near_pairs(source: MeasuredSource) -> NearPairs:
    """Measure all pairs that are near among neighbours in the raw files and among samples of frequent compositions."""
    order = sort_as_raw(source)
    pairs = np.unique(np.concatenate([find_consecutive(source, order), sample_pairs(source, order)]), axis=0)
    parts = [measure_pairs(source, order[some]) for some in split_by_atoms(source, order, pairs)]
    return NearPairs(*(np.concatenate(arrays) for arrays in zip(*parts)))


def split_by_atoms(source: MeasuredSource, order: np.ndarray, pairs: np.ndarray) -> Iterator[np.ndarray]:
    ends = np.cumsum(source.shards.natoms[order[pairs[:, 0]]])
    yield from np.split(pairs, np.searchsorted(ends, np.arange(ATOMS_PER_PIECE, ends[-1:].sum(), ATOMS_PER_PIECE)))


def sort_as_raw(source: MeasuredSource, energies: bool = True) -> np.ndarray:
    """Return the sound structures (that have an energy), in the order of the raw files whatever that of the shards."""
    shards = source.shards
    defects = source.measured.defects & (BAD_GEOMETRY | BAD_ENERGY | BAD_FORCES | BAD_STRESS)
    usable = np.flatnonzero((defects == 0) & (np.isfinite(shards.energy) | (not energies)))
    named = np.argsort(np.argsort(np.array(shards.units)))[shards.unit] if shards.units else shards.unit
    return usable[np.lexsort([shards.number[usable], named[usable]])]


def find_consecutive(source: MeasuredSource, order: np.ndarray) -> np.ndarray:
    """Return (pairs, 2) places in `order` of structures that follow each other in a group and have one composition."""
    keys = np.stack([source.shards.group[order], source.formula[order], source.shards.natoms[order]])
    sorted_by_group = np.lexsort(keys)
    one, two = sorted_by_group[:-1], sorted_by_group[1:]
    alike = np.flatnonzero((keys[:, one] == keys[:, two]).all(0))
    chosen = alike[pick_evenly(len(alike), MAX_CONSECUTIVE)]
    return np.stack([one[chosen], two[chosen]], 1)


def sample_pairs(source: MeasuredSource, order: np.ndarray) -> np.ndarray:
    """Return (pairs, 2) places in `order`: all pairs among samples of the most frequent compositions."""
    members = group_places(np.stack([source.formula[order], source.shards.natoms[order]]))
    found, left = [np.empty((0, 2), np.int64)], ATOMS_OF_PAIRS
    for places in members:
        atoms = int(source.shards.natoms[order[places[0]]])
        if len(places) < 2 or left <= 0:
            break
        size = min(MAX_SAMPLE, max(2, int(np.sqrt(2 * ATOMS_PER_COMPOSITION / atoms))))
        sample = places[pick_evenly(len(places), size)]
        one, two = np.triu_indices(len(sample), 1)
        found.append(np.stack([sample[one], sample[two]], 1))
        left -= atoms * len(one)
    return np.concatenate(found)


def group_places(keys: np.ndarray) -> list[np.ndarray]:
    """Return the places of each value of the keys (K, n), the most frequent value first."""
    if not keys.shape[1]:
        return []
    _, first, inverse, counts = np.unique(keys, axis=1, return_index=True, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(inverse.ravel(), kind="stable"), np.cumsum(counts)[:-1])
    return [members[k] for k in np.lexsort((first, -counts))]


def pick_evenly(count: int, most: int) -> np.ndarray:
    """Return at most so many of the first `count` whole numbers, spread evenly."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(most, count)).round().astype(np.int64))


# --------------------------------------------------------------------------------------------------------- changes
def measure_pairs(source: MeasuredSource, pairs: np.ndarray) -> NearPairs:
    """Measure the pairs (P, 2) of structures, and keep those that are near and have the same atoms in the same order."""
    a, b = source.shards.select(pairs[:, 0]), source.shards.select(pairs[:, 1])
    deform, strain, turn = compare_cells(a, b)
    moved, forces = compare_atoms(a, b, deform)
    volume = (measure_volumes(a) + measure_volumes(b)) / 2
    tension = (multiply_by_volume(a) + multiply_by_volume(b)) / 2
    work = -np.add.reduceat(((a.forces + forces) / 2 * moved).sum(1), a.ptr[:-1]) if len(pairs) else np.empty(0)
    found = NearPairs(a.natoms, volume, largest_norms(moved, a.ptr), b.energy - a.energy, work, strain, tension)
    near = (found.step < MAX_STEP_ANGSTROM) & (np.abs(strain).max((1, 2)) < MAX_STRAIN) & (turn < MAX_TURN)
    return found.select(near & have_same_atoms(a, b))


def measure_volumes(packed: Packed) -> np.ndarray:
    return np.abs(np.linalg.det(packed.cell.astype(np.float64)))  # (S,) Angstrom^3


def multiply_by_volume(packed: Packed) -> np.ndarray:
    """Return stress times volume, (S, 3, 3) eV."""
    return packed.stress.astype(np.float64) * measure_volumes(packed)[:, None, None]


def have_same_atoms(a: Packed, b: Packed) -> np.ndarray:
    if not len(a.natoms):
        return np.empty(0, bool)
    differ = np.logical_or.reduceat(a.numbers != b.numbers, a.ptr[:-1])
    return np.asarray(~differ & (a.pbc == b.pbc).all(1))


def compare_cells(a: Packed, b: Packed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the map from lattice a to lattice b, the strain of their mean, and the size of the rotation.

    All are (P, 3, 3) but the last, (P,). From the mean to both ends, errors of second order cancel.
    """
    one, two = lattice(a), lattice(b)
    change = np.linalg.pinv((one + two) / 2) @ (two - one)
    strain = (change + change.transpose(0, 2, 1)) / 2
    deform = np.eye(3) + np.linalg.pinv(one) @ (two - one)
    return deform, strain, np.abs(change - strain).max((1, 2), initial=0)


def lattice(packed: Packed) -> np.ndarray:
    """Return the lattice vectors that are periodic, and zeros for the others: (S, 3, 3)."""
    return np.where(packed.pbc[:, :, None] > 0, packed.cell, 0).astype(np.float64)


def compare_atoms(a: Packed, b: Packed, deform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the displacements from a to b beyond those of the lattice, and the forces of b: both (A, 3).

    Molecules and their forces are turned onto each other; in a lattice, an atom may have been wrapped to the other side.
    """
    owner = np.repeat(np.arange(len(a.natoms)), a.natoms)
    one, two = a.positions.astype(np.float64), b.positions.astype(np.float64)
    free = np.asarray(~a.pbc.any(1))
    for x, packed in ((one, a), (two, b)):
        x -= (free[:, None] * mean_positions(x, packed))[owner]
    turn = np.where(free[:, None, None], best_rotations(one, two, a.ptr), np.eye(3))[owner]
    moved = np.einsum("ai,aij->aj", two, turn) - np.einsum("ai,aij->aj", one, deform[owner])
    forces = np.einsum("ai,aij->aj", b.forces.astype(np.float64), turn)
    cells = lattice(b)
    whole = np.round(np.einsum("ai,aij->aj", moved, np.linalg.pinv(cells)[owner]))
    return moved - np.einsum("ai,aij->aj", whole, cells[owner]), forces


def largest_norms(vectors: np.ndarray, ptr: np.ndarray) -> np.ndarray:
    """Return (P,) the length of the longest of the vectors (A, 3) of each structure."""
    return np.sqrt(np.maximum.reduceat((vectors**2).sum(1), ptr[:-1])) if len(ptr) > 1 else np.empty(0)


def mean_positions(x: np.ndarray, packed: Packed) -> np.ndarray:
    if not len(packed.natoms):
        return np.empty((0, 3))
    return np.add.reduceat(x, packed.ptr[:-1]) / packed.natoms[:, None]


def best_rotations(one: np.ndarray, two: np.ndarray, ptr: np.ndarray) -> np.ndarray:
    """Return the rotations (P, 3, 3) that bring `two` nearest to `one` (Kabsch, Acta Cryst. A 32, 922 (1976))."""
    if len(ptr) == 1:
        return np.empty((0, 3, 3))
    product = np.add.reduceat(two[:, :, None] * one[:, None, :], ptr[:-1])
    left, _, right = np.linalg.svd(product)
    left[:, :, -1] *= np.sign(np.linalg.det(left @ right))[:, None]
    return left @ right
