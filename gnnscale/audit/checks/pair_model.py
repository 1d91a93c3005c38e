"""A linear model of pair energies, fitted to forces: far structures of one composition are compared through its energy.

Frames of a molecule or a liquid may be so far from each other that the work of the forces between them is unknown. The
energy of a pair model whose gradient fits their forces still correlates with their energies, and its virial with their
stress, if sign and unit agree. The slope is not 1, as a pair model is poor; it is right within a factor of about four.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gnnscale.atoms import neighbors
from gnnscale.audit.checks.near_pairs import group_places, lattice, multiply_by_volume, pick_evenly, sort_as_raw
from gnnscale.audit.measure import COVALENT_RADII_ANGSTROM, NO_FORCES, MeasuredSource
from gnnscale.data.storage.packed import Packed

MAX_STRUCTURES, MAX_ATOMS = 240, 6000
FEWEST_GROUPS = 8  # of one composition and cell, among which the structures are shared out
CUTOFF_ANGSTROM = 5.0
CENTRES = np.linspace(0.6, 2.6, 10)  # of Gaussians, in sums of covalent radii
WIDTH = CENTRES[1] - CENTRES[0]
MAX_KINDS = 12  # pairs of elements with functions of their own besides those of all pairs
RIDGE = 1e-3  # of the mean diagonal of the normal equations
CELL_STEP = 2e-3  # Angstrom: cells that differ less count as one, as energy depends on volume
# A model tells if it describes the forces and the labels follow it. Measured on real sets: shares of 0.5 to 0.99 where it
# tells, correlations of 0.6 to 1 and ratios of 0.5 to 2; ordered alloys, which it does not describe, reach 0.44.
MIN_EXPLAINED, MIN_CORRELATION, MIN_SIGNIFICANCE, MIN_STRUCTURES = 0.3, 0.55, 6.0, 15
PAIR_CODE = 128  # larger than any atomic number


class Correlation(NamedTuple):
    """Agreement of labels with those of the model."""

    ratio: float  # of the spread of the labels to that of the model, with the sign of their correlation
    correlation: float
    significance: float  # of the correlation in standard deviations
    structures: int


class PairTerms(NamedTuple):
    """Terms of the model, D for each structure: energies, their forces and their virials."""

    energy: np.ndarray  # (S, D)
    forces: np.ndarray  # (3 A, D)
    virial: np.ndarray  # (S, 9, D), sum over pairs of distance times slope: stress times volume


class FittedModel(NamedTuple):
    """The model of a source, and the structures to which it was fitted."""

    packed: Packed
    explained: float  # share of the squares of the forces
    group: np.ndarray  # (S,) composition and cell
    energy: np.ndarray  # (S,)
    virial: np.ndarray  # (S, 3, 3)


def fit_pair_model(source: MeasuredSource) -> FittedModel | None:
    """Fit the model to the forces of a sample of the source, or return None where too few structures have forces."""
    chosen, group = choose_structures(source)
    if len(chosen) < 3:
        return None
    packed = source.shards.select(chosen)
    terms = compute_terms(packed)
    weights = weigh_forces(packed)
    rows, target = terms.forces * weights[:, None], packed.forces.astype(np.float64).ravel() * weights
    normal = rows.T @ rows
    ridge = RIDGE * np.trace(normal) / len(normal) + 1e-12
    found = np.linalg.solve(normal + ridge * np.eye(len(normal)), rows.T @ target)
    explained = 1 - ((target - rows @ found) ** 2).sum() / max((target**2).sum(), 1e-12)
    return FittedModel(packed, float(explained), group, terms.energy @ found, (terms.virial @ found).reshape(-1, 3, 3))


def choose_structures(source: MeasuredSource) -> tuple[np.ndarray, np.ndarray]:
    """Choose structures with forces, first of compositions and cells that occur often; return them and their groups."""
    order = sort_as_raw(source)
    order = order[(source.measured.defects[order] & NO_FORCES == 0) & (source.shards.natoms[order] > 1)]
    if not len(order):
        return order, order
    chosen: list[int] = []
    group: list[int] = []
    atoms = 0
    members = group_places(describe_groups(source, order))
    most = MAX_STRUCTURES // min(FEWEST_GROUPS, len(members))
    for number, places in enumerate(members):
        natoms = int(source.shards.natoms[order[places[0]]])
        room = min(most, MAX_STRUCTURES - len(chosen), (MAX_ATOMS - atoms) // natoms)
        some = places[pick_evenly(len(places), room)] if room > 0 else places[:0]
        chosen += order[some].tolist()
        group += [number] * len(some)
        atoms += natoms * len(some)
        if len(chosen) >= MAX_STRUCTURES:
            break
    return np.array(chosen, np.int64), np.array(group, np.int64)


def describe_groups(source: MeasuredSource, order: np.ndarray) -> np.ndarray:
    """Return (11, structures) whole numbers that are equal within a group: formula, atoms, cell."""
    cells = np.concatenate(
        [lattice(source.shards.select(part)).reshape(-1, 9) for part in np.array_split(order, len(order) // 8192 + 1)]
    )
    rounded = np.round(cells / CELL_STEP).astype(np.int64).T
    return np.concatenate([np.stack([source.formula[order], source.shards.natoms[order]]), rounded])


def weigh_forces(packed: Packed) -> np.ndarray:
    """Return (3 A,) weights by which a structure with large forces counts no more than others."""
    squared = (packed.forces.astype(np.float64) ** 2).mean(1)
    size = np.sqrt(np.add.reduceat(squared, packed.ptr[:-1]) / packed.natoms)
    weights = 1 / np.maximum(size, max(float(np.median(size)), 1e-6))
    return np.repeat(weights, 3 * packed.natoms)


# ------------------------------------------------------------------------------------------------------------ terms
def compute_terms(packed: Packed) -> PairTerms:
    edges = neighbors.batch_edges(packed.positions, packed.ptr, packed.cell, packed.pbc, CUTOFF_ANGSTROM)
    i, j, owner = edges.receivers, edges.senders, np.repeat(np.arange(len(packed.natoms)), np.diff(edges.ptr))
    vectors = packed.positions[j].astype(np.float64) - packed.positions[i]
    vectors += np.einsum("ei,eij->ej", edges.shifts, lattice(packed)[owner])
    numbers = packed.numbers.astype(np.int64)
    radii = COVALENT_RADII_ANGSTROM[numbers[i]] + COVALENT_RADII_ANGSTROM[numbers[j]]
    lengths = np.sqrt((vectors**2).sum(1))
    values, slopes = compute_functions(lengths, radii.astype(np.float64))  # (E, K)
    slot = number_kinds(numbers[i], numbers[j])  # (E,) 0 to kinds; the first is of rare kinds
    unit = vectors / np.maximum(lengths, 1e-9)[:, None]
    kinds, atoms, structures = int(slot.max(initial=0)) + 1, len(numbers), len(packed.natoms)
    forces = [scatter(slopes * unit[:, c : c + 1], i, atoms, slot, kinds) for c in range(3)]
    virial = [
        scatter(slopes * (unit[:, a] * vectors[:, b])[:, None] / 2, owner, structures, slot, kinds)
        for a in range(3)
        for b in range(3)
    ]
    return PairTerms(
        scatter(values / 2, owner, structures, slot, kinds),
        np.stack(forces, 1).reshape(3 * atoms, -1),
        np.stack(virial, 1),
    )


def compute_functions(lengths: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the functions of each pair and their slopes, (E, K): Gaussians that end smoothly at the cutoff."""
    away = (lengths / radii)[:, None] - CENTRES
    bell = np.exp(-0.5 * (away / WIDTH) ** 2)
    angle = np.pi * lengths / CUTOFF_ANGSTROM
    end, fall = (0.5 * (1 + np.cos(angle)))[:, None], (-0.5 * np.pi / CUTOFF_ANGSTROM * np.sin(angle))[:, None]
    return bell * end, bell * (fall - end * away / WIDTH**2 / radii[:, None])


def number_kinds(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return a number of each pair of elements: the most frequent ones have one from 1 on, all others 0."""
    kind = np.minimum(one, two) * PAIR_CODE + np.maximum(one, two)
    _, inverse, counts = np.unique(kind, return_inverse=True, return_counts=True)
    place = np.zeros(len(counts), np.int64)
    frequent = np.argsort(-counts, kind="stable")[:MAX_KINDS]
    place[frequent] = np.arange(1, len(frequent) + 1)
    return place[inverse.ravel()]


def scatter(values: np.ndarray, where: np.ndarray, length: int, slot: np.ndarray, slots: int) -> np.ndarray:
    """Sum values (E, K) by place and kind: (length, K * slots). The first K are sums over all kinds."""
    summed = np.empty((length, values.shape[1], slots))
    for k in range(values.shape[1]):
        by_kind = np.bincount(where * slots + slot, values[:, k], length * slots).reshape(length, slots)
        by_kind[:, 0] = by_kind.sum(1)
        summed[:, k] = by_kind
    return summed.reshape(length, -1)


# -------------------------------------------------------------------------------------------------------- comparison
def is_telling(model: FittedModel, found: Correlation) -> bool:
    return (
        model.explained > MIN_EXPLAINED
        and abs(found.correlation) > MIN_CORRELATION
        and found.significance > MIN_SIGNIFICANCE
        and found.structures >= MIN_STRUCTURES
    )


def compare_energies(model: FittedModel) -> Correlation | None:
    """Correlate the energies of structures of one composition and cell with those of the model."""
    n, count = model.packed.natoms, np.bincount(model.group)
    inside = count[model.group] > 1
    if not inside.any():
        return None
    ours, theirs = (subtract_means(each / n, model.group)[inside] for each in (model.energy, model.packed.energy))
    return correlate(ours, theirs, int(inside.sum()), int(inside.sum()) - int((count > 1).sum()) - 1)


def subtract_means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    return values - (np.bincount(group, values) / np.maximum(np.bincount(group), 1))[group]


def compare_stresses(model: FittedModel) -> Correlation | None:
    """Correlate the traceless part of stress times volume with the virial of the model."""
    known = np.isfinite(model.packed.stress).all((1, 2)) & (model.packed.pbc > 0).all(1)
    if not known.any():
        return None
    ours = take_traceless(model.virial[known])
    theirs = take_traceless(multiply_by_volume(model.packed)[known])
    size = np.linalg.norm(theirs, axis=1, keepdims=True)
    weights = 1 / np.maximum(size, max(float(np.median(size)), 1e-9))
    return correlate((weights * ours).ravel(), (weights * theirs).ravel(), int(known.sum()), 5 * int(known.sum()))


def take_traceless(matrices: np.ndarray) -> np.ndarray:
    """Return (S, 9) the matrices less a third of their trace; pressure depends on more than pairs."""
    third = np.trace(matrices, axis1=1, axis2=2)[:, None, None] / 3
    return (matrices - third * np.eye(3)).reshape(-1, 9)


def correlate(model: np.ndarray, labels: np.ndarray, structures: int, freedom: int) -> Correlation | None:
    """Correlate two sets of values that have no mean; None where one of them does not vary."""
    ours, theirs = float(np.sqrt(model @ model)), float(np.sqrt(labels @ labels))
    if ours < 1e-9 or theirs < 1e-9:
        return None
    found = float(model @ labels) / (ours * theirs)
    significance = abs(found) * np.sqrt(max(freedom, 0) / max(1 - found**2, 1e-9))
    return Correlation(float(np.sign(found)) * theirs / ours, found, float(significance), structures)
