"""Comparison of energies and forces: between two near structures the energy falls by the work of the forces.

A wrong unit of one of the two shows as a factor, gradients stored as forces show as a negative sign.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gnnscale.audit.measure import MeasuredSource
from gnnscale.data.storage.packed import Packed

MAX_PAIRS = 2048  # of one source, spread evenly over all pairs
MAX_STEP_ANGSTROM = 0.5  # of one atom; over longer steps the mean of two forces is a poor estimate
MIN_WORK_EV = 0.01  # smaller values are rounding
MAX_STRAIN_ANGSTROM = 1e-4  # of a lattice vector: the work of a stress is not counted here


class Slope(NamedTuple):
    """Change of energy over work of the forces, from pairs of near structures."""

    value: float  # energy over work; 1 if forces are minus the gradient of the energy
    quartiles: tuple[float, float]
    pairs: int


def measure_slope(source: MeasuredSource) -> Slope | None:
    """Measure the change of energy over the work of the forces, or return None with fewer than ten usable pairs."""
    one, two = find_candidate_pairs(source)
    if not len(one):
        return None
    chosen = np.unique(np.linspace(0, len(one) - 1, min(MAX_PAIRS, len(one))).round().astype(np.int64))
    a, b = source.shards.select(one[chosen]), source.shards.select(two[chosen])
    ratio = compute_ratios(a, b)
    if len(ratio) < 10:
        return None
    low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
    return Slope(float(middle), (float(low), float(high)), len(ratio))


def find_candidate_pairs(source: MeasuredSource) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of one group and composition that are neighbours in the raw files, whatever the order of the shards."""
    shards, measured = source.shards, source.measured
    usable = np.flatnonzero((measured.defects == 0) & np.isfinite(shards.energy) & np.isfinite(measured.force))
    named = np.argsort(np.argsort(np.array(shards.units)))[shards.unit] if shards.units else shards.unit
    keys = (shards.number, named, shards.natoms, source.formula, shards.group)
    order = usable[np.lexsort([key[usable] for key in keys])]
    one, two = order[:-1], order[1:]
    alike = (shards.group[one] == shards.group[two]) & (source.formula[one] == source.formula[two])
    alike &= shards.natoms[one] == shards.natoms[two]
    return one[alike], two[alike]


def compute_ratios(a: Packed, b: Packed) -> np.ndarray:
    """Return (usable pairs,) the change of energy over minus the work of the mean force."""
    ptr = a.ptr
    moved = b.positions.astype(np.float64) - a.positions
    pbc = a.pbc.astype(bool)
    for k in np.flatnonzero(pbc.any(1)):  # an atom may have been wrapped to the other side
        part = slice(ptr[k], ptr[k + 1])
        cell = np.where(pbc[k][:, None], a.cell[k], 0).astype(np.float64)
        moved[part] -= (np.round(moved[part] @ np.linalg.pinv(cell)) * pbc[k]) @ cell
    work = np.add.reduceat((-(a.forces.astype(np.float64) + b.forces) / 2 * moved).sum(1), ptr[:-1])
    step = np.sqrt(np.maximum.reduceat((moved**2).sum(1), ptr[:-1]))
    same = ~np.logical_or.reduceat(a.numbers != b.numbers, ptr[:-1])
    same &= (np.abs(a.cell - b.cell).max((1, 2)) < MAX_STRAIN_ANGSTROM) & (a.pbc == b.pbc).all(1)
    usable = same & (step < MAX_STEP_ANGSTROM) & (np.abs(work) > MIN_WORK_EV)
    return ((b.energy - a.energy)[usable]) / work[usable]
