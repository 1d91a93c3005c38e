"""Structures in ADIOS2 (BP5): packed arrays, no edges. The only file that imports adios2.

A shard file holds steps of at most STEP structures, each with all variables; so writing needs memory for one step, and
reading may begin anywhere. 25 bytes per atom and, periodic or not, 112 per structure.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import adios2
import numpy as np

from gnnscale import files
from gnnscale.data.splits import group_hash, split_of
from gnnscale.data.structure import Structure
from gnnscale.specs import Split

SCHEMA = "gnnscale.shards/1"
STEP = 8192  # structures


class Packed(NamedTuple):
    """S structures with A atoms in all. Structure k owns the atoms ptr[k] to ptr[k + 1]."""

    numbers: np.ndarray  # (A,) uint8
    positions: np.ndarray  # (A, 3) float32, Angstrom
    forces: np.ndarray  # (A, 3) float32, eV/Angstrom
    natoms: np.ndarray  # (S,) int32
    energy: np.ndarray  # (S,) float64, eV, total
    cell: np.ndarray  # (S, 3, 3) float32, Angstrom
    pbc: np.ndarray  # (S, 3) uint8
    stress: np.ndarray  # (S, 3, 3) float32, eV/Angstrom^3
    group: np.ndarray  # (S,) int64, hash of the group's name
    split: np.ndarray  # (S,) uint8, index into splits.NAMES

    @property
    def ptr(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.natoms, dtype=np.int64)])


def pack(structures: list[Structure], split: Split) -> Packed:
    natoms = np.array([len(s.numbers) for s in structures], np.int32)
    return Packed(
        numbers=np.concatenate([s.numbers for s in structures]).astype(np.uint8),
        positions=np.concatenate([s.positions for s in structures]).astype(np.float32),
        forces=np.concatenate([s.forces for s in structures]).astype(np.float32),
        natoms=natoms,
        energy=np.array([s.energy for s in structures], np.float64),
        cell=np.stack([s.cell for s in structures]).astype(np.float32),
        pbc=np.stack([s.pbc for s in structures]).astype(np.uint8),
        stress=np.stack([s.stress for s in structures]).astype(np.float32),
        group=np.array([group_hash(s.group) for s in structures], np.int64),
        split=np.array([split_of(s.group, split) for s in structures], np.uint8),
    )


def write(path: Path, structures: Iterable[Structure], split: Split) -> None:
    """All structures into one file at `path`, which appears only when it is whole."""
    beside = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with adios2.Stream(str(beside), "w") as stream:
            stream.write_attribute("schema", SCHEMA)
            held: list[Structure] = []
            for structure in structures:
                held.append(structure)
                if len(held) == STEP:
                    _write_step(stream, pack(held, split))
                    held = []
            if held:
                _write_step(stream, pack(held, split))
    except RuntimeError as error:  # adios2 turns every failed write into this
        raise OSError(*_disk_trouble(path.parent), str(path)) from error
    (beside / "profiling.json").unlink(missing_ok=True)  # timings: the one part that differs between equal data
    files.sync_tree(beside)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(beside, path)
    files.sync_directory(path.parent)


def _write_step(stream: adios2.Stream, packed: Packed) -> None:
    stream.begin_step()
    for name, array in packed._asdict().items():
        array = np.ascontiguousarray(array)
        stream.write(name, array, list(array.shape), [0] * array.ndim, list(array.shape))
    stream.end_step()


def _disk_trouble(directory: Path) -> tuple[int, str]:
    import errno

    number = errno.ENOSPC if shutil.disk_usage(directory).free < 1 << 20 else errno.EIO
    return number, os.strerror(number)


def read(path: Path) -> Packed:
    steps = []
    try:
        with adios2.Stream(str(path), "r") as stream:
            for step in stream.steps():
                schema = step.read_attribute("schema")
                if schema != SCHEMA:
                    raise files.BadFile(f"{path}: schema {schema!r}, expected {SCHEMA!r}")
                steps.append(Packed(*(step.read(name) for name in Packed._fields)))
    except (RuntimeError, ValueError) as error:
        raise files.BadFile(f"{path}: ADIOS2 cannot read it: {str(error).splitlines()[0]}") from error
    if not steps:
        raise files.BadFile(f"{path}: holds no structures")
    return Packed(*(np.concatenate(arrays) for arrays in zip(*steps)))


def content(packed: Packed) -> str:
    """sha256 over all arrays, whatever the steps in which they were written."""
    whole = hashlib.sha256()
    for name, array in packed._asdict().items():
        whole.update(f"{name} {array.dtype.str} {array.shape}".encode())
        whole.update(np.ascontiguousarray(array))
    return whole.hexdigest()
