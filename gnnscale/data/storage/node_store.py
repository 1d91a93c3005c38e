"""Structures held once in the memory of all nodes together, for data larger than one node's memory.

This is the only file that imports mpi4py. Each rank puts an equal part of the bytes into its node's shared memory.
Structures of this node are copied from there; the others come by one-sided Get, so making a batch waits for no other rank.
Besides its bytes, each structure takes 8 bytes per node for the position at which it begins.
"""

from __future__ import annotations

import atexit
import os
import threading

import numpy as np

from gnnscale.contract import errors
from gnnscale.data.storage.mapped import Shards
from gnnscale.data.storage.packed import HAS_CELL, HAS_STRESS, Packed, concatenate_ranges, unpack_pbc
from gnnscale.machine.rank_env import read_ranks

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, but no MPI
    raise errors.UserError(
        f"data: store needs MPI, which cannot be loaded ({str(error).splitlines()[0]})",
        "install mpi4py and an MPI that your launcher knows (pip install mpi4py mpich), or set data: map",
    ) from None

STRUCTURES_PER_READ = 8192
# between probes for requests of other ranks, where the network card cannot serve them
SECONDS_BETWEEN_PROBES = 1e-3
# environment variable: this many ranks count as a node, even on one machine; for tests
RANKS_PER_NODE_VARIABLE = "GNNSCALE_RANKS_PER_NODE"

# A structure is one record: this head, then cell and stress if it has them, positions, forces, numbers, up to 7 zeros.
RECORD_HEAD = np.dtype(
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
MATRIX_BYTES = 36  # bytes of a cell or stress


class NodeStore:
    """Structures of some shards, numbered as in `row`, spread over all ranks. All ranks must make it, and close it."""

    def __init__(self, shards: Shards, row: np.ndarray):
        self.world, self.node = communicators_of_ranks()
        sizes = record_sizes(shards.natoms[row], shards.flags[row])
        # ranks in the order of their nodes, so that a node's part is contiguous
        order = sorted(self.world.allgather((self.node.bcast(self.world.rank), self.node.rank, self.world.rank)))
        self.rank_of = np.array([rank for _, _, rank in order])
        self._index = MPI.Win.Allocate_shared((len(row) + 1) * 8 if self.node.rank == 0 else 0, 8, comm=self.node)
        self.begin = view_words(self._index.Shared_query(0)[0], len(row) + 1)  # in words of 8 bytes
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
        self._fill(shards, row, self.first[mine], self.first[mine + 1])
        self.closed = False
        _serve()

    def _fill(self, shards: Shards, row: np.ndarray, first: int, last: int) -> None:
        words = int(self.begin[last] - self.begin[first])
        self._memory = MPI.Win.Allocate_shared(words * 8, 8, comm=self.node)
        own = view_words(self._memory.tomemory(), words)
        for a in range(first, last, STRUCTURES_PER_READ):
            b = min(a + STRUCTURES_PER_READ, last)
            words_of_block = slice(self.begin[a] - self.begin[first], self.begin[b] - self.begin[first])
            own[words_of_block] = encode_records(shards.select(row[a:b]), shards.flags[row[a:b]])
        # MPI guarantees that the parts of a node lie one after another
        total = int(self.begin[self.local[1]] - self.begin[self.local[0]])
        parts = [self._memory.Shared_query(rank)[0] for rank in range(self.node.size)]
        base = min((part for part in parts if part.nbytes), key=lambda part: part.address, default=None)
        self.words = view_words(MPI.buffer.fromaddress(base.address, total * 8) if base else None, total)
        self._remote = MPI.Win.Create(own if words else None, 8, comm=self.world)
        self._remote.Lock_all(MPI.MODE_NOCHECK)
        self.world.Barrier()

    def __len__(self) -> int:
        return len(self.begin) - 1

    @property
    def bytes_here(self) -> int:
        """Bytes of structures on this node."""
        return self.words.nbytes

    def select(self, chosen: np.ndarray) -> Packed:
        """Return the chosen structures, in that order."""
        chosen = np.asarray(chosen, np.int64)
        begin, lengths = self.begin[chosen], self.begin[chosen + 1] - self.begin[chosen]
        at = np.concatenate([[0], np.cumsum(lengths)])
        words = np.empty(at[-1], np.int64)
        here = (self.local[0] <= chosen) & (chosen < self.local[1])
        words[concatenate_ranges(at[:-1][here], lengths[here])] = self.words[
            concatenate_ranges(begin[here] - self.begin[self.local[0]], lengths[here])
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
        return decode_records(words, 8 * at[:-1])

    def close(self) -> None:
        """Release the memory, after every rank has read its last structure."""
        if self.closed:
            return
        self.closed = True
        self.world.Barrier()
        self._remote.Unlock_all()
        self.words = self.begin = np.empty(0, np.int64)
        for window in (self._remote, self._memory, self._index):
            window.Free()


def view_words(memory: MPI.buffer | None, words: int) -> np.ndarray:
    """View memory that MPI allocated as words of 8 bytes; without words there may be none."""
    if memory is None or not words:
        return np.empty(0, np.int64)
    return np.frombuffer(memory, np.int64, words)  # type: ignore[call-overload] # MPI.buffer has the buffer protocol


# -------------------------------------------------------------------------------------------------------------- ranks
_communicators: list[MPI.Intracomm] = []  # all ranks, and those of this node
_stop_serving = threading.Event()
_serving: list[threading.Thread] = []


def communicators_of_ranks() -> tuple[MPI.Intracomm, MPI.Intracomm]:
    """Return the communicators of all ranks and of those of this node, made at the first call."""
    if not _communicators:
        world, expected = MPI.COMM_WORLD, read_ranks()
        if world.size != expected.size or world.rank != expected.rank:
            raise errors.UserError(
                f"MPI sees rank {world.rank} of {world.size}, the launcher ({expected.launcher}) rank {expected.rank} of "
                f"{expected.size}: this MPI does not know this launcher",
                "start with the MPI's own mpiexec, or tell srun which it is (srun --mpi=pmi2 for MPICH, pmix for "
                "Open MPI), or set data: map",
            )
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise errors.UserError(
                "data: store needs an MPI that threads may use at once (MPI_THREAD_MULTIPLE), and this one "
                f"is {MPI.Get_library_version().splitlines()[0]}",
                "set data: map",
            )
        _communicators.extend([world.Dup(), node_of(world)])
    return _communicators[0], _communicators[1]


def node_of(world: MPI.Intracomm) -> MPI.Intracomm:
    size = int(os.environ.get(RANKS_PER_NODE_VARIABLE, "0"))
    node = world.Split(world.rank // size, world.rank) if size else world.Split_type(MPI.COMM_TYPE_SHARED, world.rank)
    assert isinstance(node, MPI.Intracomm)
    return node


def _serve() -> None:
    """Start a thread that calls MPI now and then: without a network card that serves Gets, MPI serves them when called."""
    if _serving or _communicators[0].size == _communicators[1].size:
        return

    def probe() -> None:
        while not _stop_serving.wait(SECONDS_BETWEEN_PROBES):
            _communicators[0].Iprobe()

    _serving.append(threading.Thread(target=probe, name="mpi", daemon=True))
    _serving[0].start()
    atexit.register(finalize_mpi)


def finalize_mpi() -> None:
    """Finalise MPI in this process; some launchers take a process that does not for a failure."""
    _stop_serving.set()
    for thread in _serving:
        thread.join()
    if not MPI.Is_finalized():
        MPI.Finalize()


# ------------------------------------------------------------------------------------------------------------ records
def record_sizes(natoms: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """Return the size of each record in bytes, a multiple of 8: (S,)."""
    matrices = (flags & HAS_CELL > 0).astype(np.int64) + (flags & HAS_STRESS > 0)
    return (RECORD_HEAD.itemsize + MATRIX_BYTES * matrices + 25 * natoms.astype(np.int64) + 7) // 8 * 8


def encode_records(packed: Packed, flags: np.ndarray) -> np.ndarray:
    """Return the records, one after another, as words of 8 bytes."""
    sizes = record_sizes(packed.natoms, flags)
    data = np.zeros(sizes.sum(), np.uint8)
    begin = np.cumsum(sizes) - sizes
    head = np.zeros(len(begin), RECORD_HEAD)
    for name in ("energy", "group", "natoms", "nedges", "split"):
        head[name] = getattr(packed, name)
    head["unit"], head["number"], head["flags"] = packed.origin[:, 0], packed.origin[:, 1], flags
    _pieces(data, RECORD_HEAD.itemsize)[begin] = head.view(f"V{RECORD_HEAD.itemsize}")
    cell, stress, x, f, z = _offsets(begin, packed.natoms, flags)
    with_cell, with_stress = flags & HAS_CELL > 0, flags & HAS_STRESS > 0
    _pieces(data, MATRIX_BYTES)[cell[with_cell]] = _as_pieces(packed.cell[with_cell], MATRIX_BYTES)
    _pieces(data, MATRIX_BYTES)[stress[with_stress]] = _as_pieces(packed.stress[with_stress], MATRIX_BYTES)
    _pieces(data, 12)[x] = _as_pieces(packed.positions, 12)
    _pieces(data, 12)[f] = _as_pieces(packed.forces, 12)
    data[z] = packed.numbers
    return data.view(np.int64)


def decode_records(words: np.ndarray, begin: np.ndarray) -> Packed:
    """Return the structures of the records that begin at these bytes."""
    data = words.view(np.uint8)
    head = _pieces(data, RECORD_HEAD.itemsize)[begin].view(RECORD_HEAD)
    natoms, flags = head["natoms"].astype(np.int32), head["flags"].copy()
    cell_at, stress_at, x, f, z = _offsets(begin, natoms, flags)
    with_cell, with_stress = flags & HAS_CELL > 0, flags & HAS_STRESS > 0
    cell = np.zeros((len(begin), 3, 3), np.float32)
    stress = np.full((len(begin), 3, 3), np.nan, np.float32)
    cell[with_cell] = _pieces(data, MATRIX_BYTES)[cell_at[with_cell]].view(np.float32).reshape(-1, 3, 3)
    stress[with_stress] = _pieces(data, MATRIX_BYTES)[stress_at[with_stress]].view(np.float32).reshape(-1, 3, 3)
    return Packed(
        numbers=data[z],
        positions=_pieces(data, 12)[x].view(np.float32).reshape(-1, 3),
        forces=_pieces(data, 12)[f].view(np.float32).reshape(-1, 3),
        natoms=natoms,
        energy=head["energy"].copy(),
        cell=cell,
        pbc=unpack_pbc(flags),
        stress=stress,
        group=head["group"].copy(),
        split=head["split"].copy(),
        nedges=head["nedges"].copy(),
        origin=np.stack([head["unit"], head["number"]], axis=1),
    )


def _offsets(begin: np.ndarray, natoms: np.ndarray, flags: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the bytes at which cell and stress (S,) begin, and positions, forces and number of each atom (A,)."""
    cell = begin + RECORD_HEAD.itemsize
    stress = cell + MATRIX_BYTES * (flags & HAS_CELL > 0)
    atoms = stress + MATRIX_BYTES * (flags & HAS_STRESS > 0)
    natoms = natoms.astype(np.int64)
    within = np.arange(natoms.sum()) - np.repeat(np.cumsum(natoms) - natoms, natoms)
    first, count = np.repeat(atoms, natoms), np.repeat(natoms, natoms)
    return cell, stress, first + 12 * within, first + 12 * (count + within), first + 24 * count + within


def _pieces(data: np.ndarray, size: int) -> np.ndarray:
    """View every run of `size` bytes, overlapping, to read or write many of them at once."""
    return np.ndarray(max(0, len(data) - size + 1), f"V{size}", data, strides=(1,))


def _as_pieces(array: np.ndarray, size: int) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(f"V{size}")
