"""Shards mapped into memory: structures are read in any order, without reading the rest and without ADIOS2.

ADIOS2 keeps every array as it was written, contiguous in data.0, and the manifest has its offset. All shards of a
dataset are mapped side by side into one range of addresses, so a structure is one number however many shards there are,
and a batch is one gather for each array.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from gnnscale.contract import errors, files
from gnnscale.data.storage.manifest import HOW_TO_REMAKE, MANIFEST, Manifest, Shard, StoredArray, read_checked
from gnnscale.data.storage.packed import HAS_CELL, HAS_STRESS, SIX_TO_NINE, Packed, unpack_pbc

MIB = 1 << 20
PROT_NONE, MAP_FIXED = 0, 0x10  # Linux; Python's mmap has no names for them


class MappedFiles:
    """Files mapped read-only, one after another. Arrays over it keep it alive."""

    def __init__(self, paths: list[Path], sizes: list[int]):
        spans = [-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes]
        self.starts = np.concatenate([[0], np.cumsum(spans, dtype=np.int64)])[:-1]  # of each file
        self.size = max(mmap.PAGESIZE, sum(spans))
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.address = self._map(None, self.size, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        for path, start, size in zip(paths, self.starts, sizes):
            handle = os.open(path, os.O_RDONLY)
            try:
                self._map(self.address + int(start), size, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, handle)
            finally:
                os.close(handle)
        self.__array_interface__ = {"version": 3, "data": (self.address, True), "typestr": "|u1", "shape": (self.size,)}

    def _map(self, address: int | None, size: int, access: int, flags: int, handle: int) -> int:
        found = self._libc.mmap(address, size, access, flags, handle, 0)
        if found == ctypes.c_void_p(-1).value:
            number = ctypes.get_errno()
            raise OSError(number, f"{os.strerror(number)} (mapping shards; vm.max_map_count limits their number)")
        return found

    def __del__(self):
        if hasattr(self, "address"):
            self._libc.munmap(self.address, self.size)


class Shards:
    """S structures on disk. Values per structure are arrays; `select` reads atoms, cells and stresses."""

    def __init__(self, path: Path, manifest: Manifest):
        self.path, self.manifest = path, manifest
        shards = manifest.shards
        self.first = np.concatenate([[0], np.cumsum([shard.structures for shard in shards])]).astype(np.int64)
        data = [path / shard.name / "data.0" for shard in shards]
        self._region = MappedFiles(data, [shard.files["data.0"].size for shard in shards])
        self._bytes = np.asarray(self._region)
        self._floats = self._bytes.view(np.float32)

    def __len__(self) -> int:
        return int(self.first[-1])

    natoms = cached_property(lambda self: self._column("natoms", np.int32))
    energy = cached_property(lambda self: self._column("energy", np.float64))
    split = cached_property(lambda self: self._column("split", np.uint8))
    group = cached_property(lambda self: self._column("group", np.int64))
    nedges = cached_property(lambda self: self._column("nedges", np.uint32))
    flags = cached_property(lambda self: self._column("flags", np.uint8))
    number = cached_property(lambda self: self._column("number", np.uint32))

    @property
    def pbc(self) -> np.ndarray:
        return unpack_pbc(self.flags)  # (S, 3) uint8

    @cached_property
    def ptr(self) -> np.ndarray:
        """First atom of each structure, and the number of all atoms: (S + 1,) int64."""
        return np.concatenate([[0], np.cumsum(self.natoms, dtype=np.int64)])

    @cached_property
    def units(self) -> tuple[str, ...]:
        """Names of the pieces of raw files, in order of appearance."""
        return tuple(dict.fromkeys(name for shard in self.manifest.shards for name in shard.units))

    @cached_property
    def unit(self) -> np.ndarray:
        """Index into `units` for each structure: (S,) uint32."""
        index_of = {name: index for index, name in enumerate(self.units)}
        named = [np.array([index_of[name] for name in shard.units], np.uint32) for shard in self.manifest.shards]
        return self._each(lambda k, shard: named[k][self.block(k, "unit")])

    def origin(self, structure: int) -> str:
        """Return where a structure is in the raw files, for people."""
        return f"{self.units[self.unit[structure]]} number {self.number[structure]}".strip()

    def block(self, shard: int, name: str) -> np.ndarray:
        """Return one variable of one shard as it is stored; empty if the shard has none."""
        block = self.manifest.shards[shard].variables.get(name)
        if block is None:
            return np.empty(0, np.uint8)
        start = int(self._region.starts[shard]) + block.offset
        return self._bytes[start : start + nbytes(block)].view(block.dtype).reshape(block.shape)

    def _column(self, name: str, dtype: type) -> np.ndarray:
        return self._each(lambda k, shard: self.block(k, name).astype(dtype, copy=False))

    def _each(self, of_shard: Callable[[int, Shard], np.ndarray]) -> np.ndarray:
        return np.concatenate([of_shard(k, shard) for k, shard in enumerate(self.manifest.shards)])

    def _starts(self, name: str) -> np.ndarray:
        """Return the byte of the map at which the variable of each shard begins; 0 where a shard has none: (shards,)."""
        offsets = [s.variables[name].offset if name in s.variables else 0 for s in self.manifest.shards]
        return self._region.starts + np.array(offsets, np.int64)

    @cached_property
    def _atoms(self) -> dict[str, np.ndarray]:
        """Position in the map, for each shard, at which atom 0 of the whole dataset would be: in bytes, and in floats."""
        before = self.ptr[self.first[:-1]]
        return {
            "numbers": self._starts("numbers") - before,
            "positions": self._starts("positions") // 4 - 3 * before,
            "forces": self._starts("forces") // 4 - 3 * before,
        }

    @cached_property
    def _cells(self) -> np.ndarray:
        """Float of the map at which each cell begins: (structures with a cell,)."""
        starts = self._starts("cell") // 4
        return self._each(lambda k, _: starts[k] + 9 * self.block(k, "cell_row").astype(np.int64))

    @cached_property
    def _stresses(self) -> tuple[np.ndarray, np.ndarray]:
        """Float of the map at which each stress begins, and whether all nine are stored: (structures with a stress,)."""
        starts = self._starts("stress") // 4
        rows = [self.block(k, "stress") for k in range(len(starts))]
        begin = [start + row.shape[-1] * np.arange(len(row)) for start, row in zip(starts, rows)]
        return np.concatenate(begin), np.concatenate([np.full(len(row), row.shape[-1] == 9) for row in rows])

    @cached_property
    def _cell_rank(self) -> np.ndarray:
        return _rank(self.flags & HAS_CELL > 0)

    @cached_property
    def _stress_rank(self) -> np.ndarray:
        return _rank(self.flags & HAS_STRESS > 0)

    def select(self, chosen: np.ndarray) -> Packed:
        """Copy the chosen structures out of the map, in that order."""
        chosen = np.asarray(chosen, np.int64)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"structure {chosen.min()} or {chosen.max()} of {len(self)} in {self.path}")
        shard = np.searchsorted(self.first, chosen, side="right") - 1
        natoms, begin, flags = self.natoms[chosen], self.ptr[chosen], self.flags[chosen]
        ends = np.cumsum(natoms, dtype=np.int64)
        within, total = ends - natoms, int(ends[-1]) if len(ends) else 0
        steps = np.arange(total)
        bytes_at = np.repeat(self._atoms["numbers"][shard] + begin - within, natoms) + steps
        steps *= 3
        floats_at = np.repeat(self._atoms["positions"][shard] + 3 * (begin - within), natoms) + steps
        positions = self._triples(floats_at)
        floats_at += np.repeat((self._atoms["forces"] - self._atoms["positions"])[shard], natoms)
        return Packed(
            numbers=self._bytes[bytes_at],
            positions=positions,
            forces=self._triples(floats_at),
            natoms=natoms,
            energy=self.energy[chosen],
            cell=self._cell_of(chosen, flags),
            pbc=unpack_pbc(flags),
            stress=self._stress_of(chosen, flags),
            group=self.group[chosen],
            split=self.split[chosen],
            nedges=self.nedges[chosen],
            origin=np.stack([self.unit[chosen], self.number[chosen]], axis=1),
        )

    def _triples(self, at: np.ndarray) -> np.ndarray:
        """Read three floats from each position on: 12 bytes at a time, six times faster than by rows: (n, 3) float32."""
        windows = np.ndarray(len(self._floats) - 2, "V12", self._floats, strides=(4,))
        return windows[at].view(np.float32).reshape(-1, 3)

    def _cell_of(self, chosen: np.ndarray, flags: np.ndarray) -> np.ndarray:
        cell, has = np.zeros((len(chosen), 9), np.float32), flags & HAS_CELL > 0
        if has.any():
            cell[has] = self._floats[self._cells[self._cell_rank[chosen[has]]][:, None] + np.arange(9)]
        return cell.reshape(-1, 3, 3)

    def _stress_of(self, chosen: np.ndarray, flags: np.ndarray) -> np.ndarray:
        stress, has = np.full((len(chosen), 9), np.nan, np.float32), flags & HAS_STRESS > 0
        if has.any():
            begin, nine = (a[self._stress_rank[chosen[has]]] for a in self._stresses)
            stress[has] = self._floats[begin[:, None] + np.where(nine[:, None], np.arange(9), SIX_TO_NINE)]
        return stress.reshape(-1, 3, 3)


def _rank(has: np.ndarray) -> np.ndarray:
    """Count how many structures before each one have the property: (S,) uint32."""
    return (np.cumsum(has, dtype=np.int64) - has).astype(np.uint32)


def nbytes(block: StoredArray) -> int:
    return int(np.prod(block.shape, dtype=np.int64)) * np.dtype(block.dtype).itemsize


def checksums(data: memoryview) -> tuple[int, ...]:
    return tuple(zlib.crc32(data[start : start + MIB]) for start in range(0, len(data), MIB))


def open_shards(path: Path, check: bool = False) -> Shards:
    """Map the shards under `path`. File sizes are always compared with the manifest; with `check` every byte, at 4 GB/s."""
    manifest = read_checked(path / MANIFEST, Manifest)
    if not manifest.total.structures:
        raise errors.BadFile(f"{path}: holds no structures")
    for shard in manifest.shards:
        check_shard(path / shard.name, shard, check)
    return Shards(path, manifest)


def check_shard(directory: Path, shard: Shard, check: bool) -> None:
    """Raise BadFile if a file of a shard is missing or has another size; with `check`, also if its content differs."""
    for name, expected in shard.files.items():
        file = directory / name
        try:
            size = file.stat().st_size
        except OSError:
            raise errors.BadFile(f"{file}: missing; {HOW_TO_REMAKE}") from None
        if size != expected.size:
            raise errors.BadFile(f"{file}: altered since it was written: {size} bytes, {expected.size} expected")
        if check and name == "data.0":
            check_arrays(file, shard)
        elif check and files.sha256(file) != expected.sha256:
            raise errors.BadFile(f"{file}: altered since it was written")


def check_arrays(file: Path, shard: Shard) -> None:
    with file.open("rb") as data:
        for name, block in shard.variables.items():
            data.seek(block.offset)
            found = checksums(memoryview(data.read(nbytes(block))))
            wrong = next((k for k, (now, then) in enumerate(zip(found, block.crc32)) if now != then), None)
            if wrong is not None:
                begin, end = wrong * MIB, min((wrong + 1) * MIB, nbytes(block))
                raise errors.BadFile(
                    f"{file}: altered since it was written: variable {name}, "
                    f"between bytes {block.offset + begin} and {block.offset + end}"
                )
