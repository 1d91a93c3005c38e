"""Structures in which two atoms overlap, periodic images included: their direction is 0/0, which is NaN in a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gnnscale.atoms.structure import Structure

MIN_DISTANCE = 0.1  # Angstrom; the shortest bond, H-H, has 0.74
# Angstrom; atoms within MIN_DISTANCE share a box in at least one of eight grids that are half a box apart
BOX_EDGE = 2.2 * MIN_DISTANCE
HASH_PRIMES = np.array([73856093, 19349663, 83492791], np.int64)


def find_overlapping(structures: Sequence[Structure]) -> np.ndarray:
    """Mark the structures in which two atoms, or an atom and an image, are nearer than MIN_DISTANCE: (S,) bool."""
    found = np.zeros(len(structures), bool)
    if not len(structures):
        return found
    owner = np.repeat(np.arange(len(structures)), [len(s.numbers) for s in structures])  # (A,)
    positions = np.concatenate([s.positions for s in structures]).astype(np.float64)  # (A, 3)
    owner, positions = with_images(structures, owner, positions)
    for corner in np.ndindex(2, 2, 2):
        boxes = np.floor(positions / BOX_EDGE + np.array(corner) / 2).astype(np.int64)
        key = (boxes * HASH_PRIMES).sum(1) * 1000003 + owner  # equal keys share a box, or collide: checked below
        order = np.argsort(key, kind="stable")
        for k in np.unique(owner[order[1:][key[order[1:]] == key[order[:-1]]]]):
            found[k] = found[k] or shortest_distance(positions[owner == k]) < MIN_DISTANCE
    return found


def with_images(
    structures: Sequence[Structure], owner: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the atoms moved into their cells, and copies beyond the upper face of those near a lower face."""
    pbc = np.stack([s.pbc for s in structures]).astype(bool)
    if not pbc.any():
        return owner, positions
    cells = np.stack([s.cell for s in structures]).astype(np.float64)
    for k in np.flatnonzero(pbc.any(1)):  # directions that are not periodic get a perpendicular vector
        cells[k] = complete_cell(cells[k], pbc[k])
    cells[~pbc.any(1)] = np.eye(3)
    inverse = np.linalg.inv(cells)
    within = MIN_DISTANCE * np.linalg.norm(
        inverse, axis=1
    )  # (S, 3) MIN_DISTANCE from a face, in fractional coordinates
    fractional = np.einsum("ai,aij->aj", positions, inverse[owner])
    fractional -= np.floor(fractional) * pbc[owner]
    for axis in range(3):
        near = pbc[owner, axis] & (fractional[:, axis] < within[owner, axis])
        beyond = fractional[near]
        beyond[:, axis] += 1.0
        fractional, owner = np.concatenate([fractional, beyond]), np.concatenate([owner, owner[near]])
    return owner, np.einsum("ai,aij->aj", fractional, cells[owner])


def complete_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Return the cell with vectors perpendicular to the others in the directions that are not periodic."""
    if pbc.all():
        return cell
    basis = np.linalg.svd(cell[pbc])[2][pbc.sum() :]  # rows span what the periodic vectors do not
    made = cell.copy()
    made[~pbc] = basis
    return made


def shortest_distance(positions: np.ndarray) -> float:
    """Return the shortest distance of any two atoms; few structures come here: Angstrom."""
    best = np.inf
    for k in range(len(positions) - 1):
        best = min(best, float(np.linalg.norm(positions[k + 1 :] - positions[k], axis=1).min()))
    return best
