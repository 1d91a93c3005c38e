"""Who is within the cutoff of whom, periodic images included: the only door to vesin."""

from __future__ import annotations

from functools import cache

import numpy as np
from vesin import NeighborList


@cache
def _finder(cutoff: float) -> NeighborList:
    return NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=1)


def edges(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Receivers (E,) int32, senders (E,) int32, shifts (E, 3) int16: all directed pairs with 0 <= r < cutoff.

    Sorted by receiver, sender, shift. Vectors are x[sender] + shift @ cell - x[receiver]; an atom is a neighbour of
    its own images but not of itself. Rows of `cell` that are not periodic may be anything, zeros included.
    """
    x = np.ascontiguousarray(positions, dtype=np.float64)  # (A, 3) Angstrom
    box = np.asarray(cell, dtype=np.float64)
    pairs, shifts = _finder(float(cutoff)).compute(x, box, np.asarray(pbc, dtype=bool), "PS", copy=False)
    if len(pairs) == 0:
        return np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, 3), np.int16)
    i, j = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)
    span = 2 * int(np.abs(shifts).max()) + 1
    rank = ((i * len(x) + j) * span + shifts[:, 0]) * span + shifts[:, 1]  # vesin leaves senders in any order
    order = np.argsort(rank * span + shifts[:, 2], kind="stable")
    return i[order].astype(np.int32), j[order].astype(np.int32), shifts[order].astype(np.int16)
