"""Atoms in the same place, periodic images included: nothing can be learned from them, and a direction 0/0 is NaN."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gnnscale.atoms.structure import Structure

NEAREST = 0.1  # Angstrom; the shortest bond there is, H-H, is 0.74
BOX = 2.2 * NEAREST  # Angstrom: whatever is as near as NEAREST shares a box of one of eight grids, half a box apart
PRIME = np.array([73856093, 19349663, 83492791], np.int64)


def coincident(structures: Sequence[Structure]) -> np.ndarray:
    """(S,) bool: whether two atoms of a structure, or of it and its images, are nearer than NEAREST."""
    found = np.zeros(len(structures), bool)
    if not len(structures):
        return found
    owner = np.repeat(np.arange(len(structures)), [len(s.numbers) for s in structures])  # (A,)
    positions = np.concatenate([s.positions for s in structures]).astype(np.float64)  # (A, 3)
    owner, positions = with_images(structures, owner, positions)
    for corner in np.ndindex(2, 2, 2):
        boxes = np.floor(positions / BOX + np.array(corner) / 2).astype(np.int64)
        key = (boxes * PRIME).sum(1) * 1000003 + owner  # equal ones share a box, or collide: looked at below
        order = np.argsort(key, kind="stable")
        for who in np.unique(owner[order[1:][key[order[1:]] == key[order[:-1]]]]):
            found[who] = found[who] or nearest(positions[owner == who]) < NEAREST
    return found


def with_images(
    structures: Sequence[Structure], owner: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Atoms brought into their cells, and again those near a lower face beyond the upper one."""
    pbc = np.stack([s.pbc for s in structures]).astype(bool)
    if not pbc.any():
        return owner, positions
    cells = np.stack([s.cell for s in structures]).astype(np.float64)
    for k in np.flatnonzero(pbc.any(1)):  # what is not periodic gets a vector out of the way
        cells[k] = completed(cells[k], pbc[k])
    cells[~pbc.any(1)] = np.eye(3)
    inverse = np.linalg.inv(cells)
    within = NEAREST * np.linalg.norm(inverse, axis=1)  # (S, 3) the distance NEAREST from a face, fractional
    fractional = np.einsum("ai,aij->aj", positions, inverse[owner])
    fractional -= np.floor(fractional) * pbc[owner]
    for axis in range(3):
        near = pbc[owner, axis] & (fractional[:, axis] < within[owner, axis])
        beyond = fractional[near]
        beyond[:, axis] += 1.0
        fractional, owner = np.concatenate([fractional, beyond]), np.concatenate([owner, owner[near]])
    return owner, np.einsum("ai,aij->aj", fractional, cells[owner])


def completed(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell with vectors, for the directions in which it does not repeat, that are perpendicular to the others."""
    if pbc.all():
        return cell
    basis = np.linalg.svd(cell[pbc])[2][pbc.sum() :]  # rows span what the periodic vectors do not
    made = cell.copy()
    made[~pbc] = basis
    return made


def nearest(positions: np.ndarray) -> float:
    """Angstrom, of any two; few structures come here."""
    best = np.inf
    for k in range(len(positions) - 1):
        best = min(best, float(np.linalg.norm(positions[k + 1 :] - positions[k], axis=1).min()))
    return best
