"""Neighbour lists with periodic images, by neighbors.cpp if it was compiled, else by vesin.

The compiled list takes a whole batch in one call, a few microseconds per structure, and releases the GIL meanwhile.
Without a compiler the package installs too, and vesin finds the same edges more slowly.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from vesin import NeighborList

SOURCE = Path(__file__).with_name("neighbors.cpp")
FIRST_EDGES_PER_ATOM = 64  # for which memory is allocated at first, if the caller does not know the number of edges
ERROR_MESSAGES = {
    1: "its periodic lattice vectors are linearly dependent",
    2: "a position or lattice vector is not finite, or an atom lies absurdly far away",
    3: "the cell is so small compared with the cutoff that its images would not fit into memory",
    4: "its neighbours do not fit into memory",
}


class Edges(NamedTuple):
    """All directed pairs of several structures with 0 <= r < cutoff, sorted by receiver, sender and shift.

    Vectors are x[sender] + shift @ cell - x[receiver]; an atom is a neighbour of its own images but not of itself.
    """

    receivers: np.ndarray  # (E,) int64, index into the positions given
    senders: np.ndarray  # (E,) int64
    shifts: np.ndarray  # (E, 3) float32, whole numbers
    ptr: np.ndarray  # (S + 1,) int64: structure k owns the edges ptr[k] to ptr[k + 1]


def batch_edges(
    positions: np.ndarray,
    ptr: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    cutoff: float,
    capacity: int | None = None,
) -> Edges:
    """Find the edges of S structures in one call; structure k has the atoms ptr[k] to ptr[k + 1].

    positions (A, 3), cell (S, 3, 3), pbc (S, 3). Rows of `cell` that are not periodic may have any value, also zero.
    `capacity` is the number of edges if it is known: it saves memory, and a second try if there are many.
    """
    x = np.ascontiguousarray(positions, dtype=np.float64)  # (A, 3) Angstrom
    if (library := compiled_library()) is None:
        return _by_vesin(x, ptr, cell, pbc, cutoff)
    capacity = FIRST_EDGES_PER_ATOM * len(x) if capacity is None else capacity
    while True:
        made = np.empty(capacity, np.int64), np.empty(capacity, np.int64), np.empty((capacity, 3), np.float32)
        edge_ptr = _call(library, x, ptr, cell, pbc, cutoff, made)
        count = int(edge_ptr[-1])
        if count <= capacity:
            receivers, senders, shifts = (array[:count] for array in made)
            return Edges(receivers, senders, shifts, edge_ptr)
        capacity = count


def count_edges(positions: np.ndarray, ptr: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> np.ndarray:
    """Count the edges of each structure without keeping them: (S,) int64."""
    x = np.ascontiguousarray(positions, dtype=np.float64)
    if (library := compiled_library()) is None:
        return np.diff(_by_vesin(x, ptr, cell, pbc, cutoff).ptr)
    nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 3), np.float32)
    return np.diff(_call(library, x, ptr, cell, pbc, cutoff, nothing))


def find_edges(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the edges of one structure: receivers (E,) int32, senders (E,) int32, shifts (E, 3) int16, as in `Edges`."""
    ptr = np.array([0, len(positions)])
    found = batch_edges(positions, ptr, np.asarray(cell)[None], np.asarray(pbc)[None], cutoff)
    return found.receivers.astype(np.int32), found.senders.astype(np.int32), found.shifts.astype(np.int16)


# ------------------------------------------------------------------------------------------------------ compiled
@cache
def compiled_library() -> ctypes.CDLL | None:
    """Load the library that was compiled from neighbors.cpp at installation; None, with one warning, if there is none."""
    found = sorted(Path(__file__).parent.glob("_neighbors.*so"))
    try:
        library = ctypes.CDLL(str(found[0])) if found else None
    except OSError:  # compiled for another machine
        library = None
    if library is None:
        warnings.warn(
            "the compiled neighbour list is missing; vesin is used instead, several times slower; "
            "install gnnscale again where there is a C++ compiler",
            stacklevel=3,
        )
        return None
    library.gnnscale_neighbors_source.restype = ctypes.c_char_p
    if SOURCE.exists() and library.gnnscale_neighbors_source().decode() != source_digest(SOURCE):
        warnings.warn(
            f"{SOURCE.name} was changed since it was compiled; vesin is used instead; install gnnscale "
            "again (python -m pip install --no-deps -e .)",
            stacklevel=3,
        )
        return None
    number, array = ctypes.c_int64, np.ctypeslib.ndpointer
    whole, real = array(np.int64, flags="C"), array(np.float64, flags="C")
    library.gnnscale_neighbors.argtypes = [
        number,
        whole,
        real,
        real,
        array(np.uint8, flags="C"),
        ctypes.c_double,
        number,
        whole,
        whole,
        array(np.float32, flags="C"),
        whole,
    ]
    library.gnnscale_neighbors.restype = ctypes.c_int32
    return library


def source_digest(source: Path) -> str:
    """Return the digest that setup.py compiles into the library, by which an outdated library is detected."""
    return hashlib.sha256(source.read_bytes()).hexdigest()[:16]


def _call(
    library: ctypes.CDLL,
    x: np.ndarray,
    ptr: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    cutoff: float,
    made: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
    """Fill receivers, senders and shifts as far as they reach, and return where each structure's edges begin."""
    ptr = np.ascontiguousarray(ptr, dtype=np.int64)
    cells = np.ascontiguousarray(cell, dtype=np.float64)
    periodic = np.ascontiguousarray(pbc, dtype=bool).view(np.uint8)
    structures = len(ptr) - 1
    if not (cells.shape == (structures, 3, 3) and periodic.shape == (structures, 3) and x.shape == (ptr[-1], 3)):
        raise ValueError(
            f"{structures} structures with {ptr[-1]} atoms, but positions are {x.shape}, cells "
            f"{cells.shape}, pbc {periodic.shape}"
        )
    edge_ptr = np.empty(structures + 1, np.int64)
    status = library.gnnscale_neighbors(structures, ptr, x, cells, periodic, cutoff, len(made[0]), *made, edge_ptr)
    if status:
        kind = MemoryError if status == 4 else ValueError
        raise kind(f"no neighbours of structure {edge_ptr[0]} of {structures}: {ERROR_MESSAGES[status]}")
    return edge_ptr


# --------------------------------------------------------------------------------------------------------- vesin
@cache
def _vesin(cutoff: float, thread: int) -> NeighborList:
    """Return a list for one thread: its results lie in memory that the next call on it uses again."""
    from vesin import NeighborList

    return NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=1)


def _by_vesin(x: np.ndarray, ptr: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> Edges:
    found, lengths = [], []
    for k in range(len(ptr) - 1):
        atoms = slice(int(ptr[k]), int(ptr[k + 1]))
        box, periodic = np.asarray(cell[k], dtype=np.float64), np.asarray(pbc[k], dtype=bool)
        pairs, shifts = _vesin(float(cutoff), threading.get_ident()).compute(x[atoms], box, periodic, "PS", copy=False)
        i, j = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)
        span = 2 * int(np.abs(shifts).max(initial=0)) + 1
        rank = ((i * (atoms.stop - atoms.start) + j) * span + shifts[:, 0]) * span + shifts[:, 1]
        order = np.argsort(rank * span + shifts[:, 2], kind="stable")  # vesin does not sort senders
        found.append((i[order] + atoms.start, j[order] + atoms.start, shifts[order].astype(np.float32)))
        lengths.append(len(i))
    if not found:
        found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 3), np.float32))]
    receivers, senders, all_shifts = (np.concatenate(arrays) for arrays in zip(*found))
    return Edges(receivers, senders, all_shifts, np.cumsum([0, *lengths], dtype=np.int64))
