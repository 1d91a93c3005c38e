"""Structures held once in the memory of all nodes together, for data larger than one node's: the only door to mpi4py.

Each rank puts an equal part of the bytes into its node's shared memory. What lies on this node is copied from there;
the rest comes by one-sided Get, so making a batch waits for no other rank to do the same. What is kept of a structure
besides its own bytes is where it begins: 8 bytes, once a node.
"""

from __future__ import annotations

import atexit
import os
import threading

import numpy as np

from gnnscale.contract import errors
from gnnscale.data.storage.mapped import Shards
from gnnscale.data.storage.packed import HAS_CELL, HAS_STRESS, Packed, periodic
from gnnscale.machine.rank_env import ranks

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, but no MPI
    raise errors.Refusal(
        f"data: store needs MPI, which cannot be loaded ({str(error).splitlines()[0]})",
        "install mpi4py and an MPI that your launcher knows (pip install mpi4py mpich), or set data: map",
    ) from None

BLOCK = 8192  # structures that are read at a time
PAUSE = 1e-3  # seconds between looks for what other ranks want, where the network cannot serve them by itself
PRETEND = "GNNSCALE_RANKS_PER_NODE"  # so many ranks make a node, also where all are on one machine: for trying it out

# A structure is one record: this, then cell and stress if it has them, positions, forces, numbers, and up to 7 zeros.
HEAD = np.dtype(
    [
        ("energy", "f8"),
        ("group", "i8"),
        ("natoms", "i4"),
        ("nedges", "u4"),
        ("unit", "u4"),
        ("number", "u4"),
        ("split", "u1"),
        ("flags", "u1"),
        ("none", "V6"),
    ]
)
MATRIX = 36  # bytes of a cell or stress


class Store:
    """The rows of some shards, numbered as in `row`, spread over all ranks. All ranks must make it, and close it."""

    def __init__(self, there: Shards, row: np.ndarray):
        self.world, self.node = communicators()
        sizes = record_sizes(there.natoms[row], there.flags[row])
        # ranks in the order of their nodes, so that a node's part is one piece
        places = sorted(self.world.allgather((self.node.bcast(self.world.rank), self.node.rank, self.world.rank)))
        self.rank_of = np.array([rank for _, _, rank in places])
        self._index = MPI.Win.Allocate_shared((len(row) + 1) * 8 if self.node.rank == 0 else 0, 8, comm=self.node)
        self.begin = np.frombuffer(self._index.Shared_query(0)[0], np.int64, len(row) + 1)  # in words of 8 bytes
        if self.node.rank == 0:
            np.cumsum(sizes // 8, out=self.begin[1:])
            self.begin[0] = 0
        self.node.Barrier()
        shares = np.linspace(0, self.begin[-1], self.world.size + 1)
        self.first = np.searchsorted(self.begin, shares[:-1]).astype(np.int64)  # structure with which each part begins
        self.first = np.append(self.first, len(row))
        mine = int(np.flatnonzero(self.rank_of == self.world.rank)[0])
        here = mine - self.node.rank  # the part of the node's first rank
        self.local = self.first[here], self.first[here + self.node.size]  # structures on this node
        self._fill(there, row, self.first[mine], self.first[mine + 1])
        self.closed = False
        _serve()

    def _fill(self, there: Shards, row: np.ndarray, first: int, last: int) -> None:
        words = int(self.begin[last] - self.begin[first])
        self._memory = MPI.Win.Allocate_shared(words * 8, 8, comm=self.node)
        own = np.frombuffer(self._memory.tomemory(), np.int64, words) if words else np.empty(0, np.int64)
        for a in range(first, last, BLOCK):
            b = min(a + BLOCK, last)
            place = slice(self.begin[a] - self.begin[first], self.begin[b] - self.begin[first])
            own[place] = encode(there.select(row[a:b]), there.flags[row[a:b]])
        # a node's parts lie one behind the other, which MPI promises
        total = int(self.begin[self.local[1]] - self.begin[self.local[0]])
        parts = [self._memory.Shared_query(rank)[0] for rank in range(self.node.size)]
        base = min((part for part in parts if part.nbytes), key=lambda part: part.address, default=None)
        self.words = (
            np.frombuffer(MPI.buffer.fromaddress(base.address, total * 8), np.int64) if base else np.empty(0, np.int64)
        )
        self._remote = MPI.Win.Create(own if words else None, 8, comm=self.world)
        self._remote.Lock_all(MPI.MODE_NOCHECK)
        self.world.Barrier()

    def __len__(self) -> int:
        return len(self.begin) - 1

    @property
    def bytes_here(self) -> int:
        """Of structures, on this node."""
        return self.words.nbytes

    def select(self, chosen: np.ndarray) -> Packed:
        """The chosen structures, in that order."""
        chosen = np.asarray(chosen, np.int64)
        begin, lengths = self.begin[chosen], self.begin[chosen + 1] - self.begin[chosen]
        at = np.concatenate([[0], np.cumsum(lengths)])
        words = np.empty(at[-1], np.int64)
        here = (self.local[0] <= chosen) & (chosen < self.local[1])
        words[_ranges(at[:-1][here], lengths[here])] = self.words[
            _ranges(begin[here] - self.begin[self.local[0]], lengths[here])
        ]
        away = np.flatnonzero(~here)
        part = np.searchsorted(self.first, chosen[away], side="right") - 1
        offset = begin[away] - self.begin[self.first[part]]
        requests = [
            self._remote.Rget(
                words[at[k] : at[k + 1]], int(self.rank_of[p]), (int(o), int(at[k + 1] - at[k]), MPI.INT64_T)
            )
            for k, p, o in zip(away, part, offset)
        ]
        MPI.Request.Waitall(requests)
        return decode(words, 8 * at[:-1])

    def close(self) -> None:
        """Once every rank has all that it will ever want."""
        if self.closed:
            return
        self.closed = True
        self.world.Barrier()
        self._remote.Unlock_all()
        self.words = self.begin = np.empty(0, np.int64)
        for window in (self._remote, self._memory, self._index):
            window.Free()


# ------------------------------------------------------------------------------------------------------ the ranks
_known: list[MPI.Comm] = []  # all ranks, those of this node
_over = threading.Event()  # set when Gets need no more serving
_serving: list[threading.Thread] = []


def communicators() -> tuple[MPI.Comm, MPI.Comm]:
    if not _known:
        world, expected = MPI.COMM_WORLD, ranks()
        if world.size != expected.size or world.rank != expected.rank:
            raise errors.Refusal(
                f"MPI sees rank {world.rank} of {world.size}, the launcher ({expected.launcher}) rank {expected.rank} of "
                f"{expected.size}: this MPI does not know this launcher",
                "start with the MPI's own mpiexec, or tell srun which it is (srun --mpi=pmi2 for MPICH, pmix for "
                "Open MPI), or set data: map",
            )
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise errors.Refusal(
                "data: store needs an MPI that threads may use at once (MPI_THREAD_MULTIPLE), and this one "
                f"is {MPI.Get_library_version().splitlines()[0]}",
                "set data: map",
            )
        _known.extend([world.Dup(), node_of(world)])
    return _known[0], _known[1]


def node_of(world: MPI.Comm) -> MPI.Comm:
    if size := int(os.environ.get(PRETEND, "0")):
        return world.Split(world.rank // size, world.rank)
    return world.Split_type(MPI.COMM_TYPE_SHARED, world.rank)


def _serve() -> None:
    """Where Gets are not served by the network card, MPI serves them when it is called: so call it now and then."""
    if _serving or _known[0].size == _known[1].size:
        return

    def look() -> None:
        while not _over.wait(PAUSE):
            _known[0].Iprobe()

    _serving.append(threading.Thread(target=look, name="mpi", daemon=True))
    _serving[0].start()
    atexit.register(leave)


def leave() -> None:
    """The end of MPI in this process, which some launchers take for a failure if it is left out."""
    _over.set()
    for thread in _serving:
        thread.join()
    if not MPI.Is_finalized():
        MPI.Finalize()


# ------------------------------------------------------------------------------------------------------- records
def record_sizes(natoms: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """(S,) bytes, multiples of 8"""
    matrices = (flags & HAS_CELL > 0).astype(np.int64) + (flags & HAS_STRESS > 0)
    return (HEAD.itemsize + MATRIX * matrices + 25 * natoms.astype(np.int64) + 7) // 8 * 8


def encode(packed: Packed, flags: np.ndarray) -> np.ndarray:
    """Records, one behind the other, as words of 8 bytes."""
    sizes = record_sizes(packed.natoms, flags)
    data = np.zeros(sizes.sum(), np.uint8)
    begin = np.cumsum(sizes) - sizes
    head = np.zeros(len(begin), HEAD)
    for name in ("energy", "group", "natoms", "nedges", "split"):
        head[name] = getattr(packed, name)
    head["unit"], head["number"], head["flags"] = packed.origin[:, 0], packed.origin[:, 1], flags
    _pieces(data, HEAD.itemsize)[begin] = head.view(f"V{HEAD.itemsize}")
    cell, stress, x, f, z = _offsets(begin, packed.natoms, flags)
    with_cell, with_stress = flags & HAS_CELL > 0, flags & HAS_STRESS > 0
    _pieces(data, MATRIX)[cell[with_cell]] = _as_pieces(packed.cell[with_cell], MATRIX)
    _pieces(data, MATRIX)[stress[with_stress]] = _as_pieces(packed.stress[with_stress], MATRIX)
    _pieces(data, 12)[x] = _as_pieces(packed.positions, 12)
    _pieces(data, 12)[f] = _as_pieces(packed.forces, 12)
    data[z] = packed.numbers
    return data.view(np.int64)


def decode(words: np.ndarray, begin: np.ndarray) -> Packed:
    """Of records that begin at these bytes."""
    data = words.view(np.uint8)
    head = _pieces(data, HEAD.itemsize)[begin].view(HEAD)
    natoms, flags = head["natoms"].astype(np.int32), head["flags"].copy()
    cell_at, stress_at, x, f, z = _offsets(begin, natoms, flags)
    with_cell, with_stress = flags & HAS_CELL > 0, flags & HAS_STRESS > 0
    cell = np.zeros((len(begin), 3, 3), np.float32)
    stress = np.full((len(begin), 3, 3), np.nan, np.float32)
    cell[with_cell] = _pieces(data, MATRIX)[cell_at[with_cell]].view(np.float32).reshape(-1, 3, 3)
    stress[with_stress] = _pieces(data, MATRIX)[stress_at[with_stress]].view(np.float32).reshape(-1, 3, 3)
    return Packed(
        numbers=data[z],
        positions=_pieces(data, 12)[x].view(np.float32).reshape(-1, 3),
        forces=_pieces(data, 12)[f].view(np.float32).reshape(-1, 3),
        natoms=natoms,
        energy=head["energy"].copy(),
        cell=cell,
        pbc=periodic(flags),
        stress=stress,
        group=head["group"].copy(),
        split=head["split"].copy(),
        nedges=head["nedges"].copy(),
        origin=np.stack([head["unit"], head["number"]], axis=1),
    )


def _offsets(begin: np.ndarray, natoms: np.ndarray, flags: np.ndarray) -> tuple[np.ndarray, ...]:
    """Bytes at which there are: cell and stress (S,), positions, forces and number of every atom (A,)."""
    cell = begin + HEAD.itemsize
    stress = cell + MATRIX * (flags & HAS_CELL > 0)
    atoms = stress + MATRIX * (flags & HAS_STRESS > 0)
    natoms = natoms.astype(np.int64)
    within = np.arange(natoms.sum()) - np.repeat(np.cumsum(natoms) - natoms, natoms)
    first, count = np.repeat(atoms, natoms), np.repeat(natoms, natoms)
    return cell, stress, first + 12 * within, first + 12 * (count + within), first + 24 * count + within


def _pieces(data: np.ndarray, size: int) -> np.ndarray:
    """Every run of `size` bytes, overlapping: to read or write many of them at once."""
    return np.ndarray(max(0, len(data) - size + 1), f"V{size}", data, strides=(1,))


def _as_pieces(array: np.ndarray, size: int) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(f"V{size}")


def _ranges(begin: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.arange(lengths.sum()) + np.repeat(begin - (np.cumsum(lengths) - lengths), lengths)
