"""Structures in ADIOS2 (BP5): packed arrays, no edges. The only file that imports adios2.

A dataset is a directory of shards, each a BP5 file of one step with at most SHARD structures, and a manifest. So writing
needs memory for one shard. ADIOS2 2.12 waits for ever on a file whose index was cut off, or crashes; hence every file
is compared with the manifest before ADIOS2 sees it. 25 bytes per atom and 112 per structure.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
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
SHARD = 8192  # structures
MANIFEST = "manifest.json"


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
    """All structures into shards under `path`, which appears only when it is whole."""
    beside = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    stream = iter(structures)
    for number in itertools.count():
        held = list(itertools.islice(stream, SHARD))
        if not held:
            break
        write_shard(beside / f"{number:05}.bp", pack(held, split))
    files.sync_tree(beside)
    written = {name: file.sha256 for name, file in files.describe(beside, ["."]).items()}
    files.write(beside / MANIFEST, json.dumps({"schema": SCHEMA, "files": written}, indent=1))
    shutil.rmtree(path, ignore_errors=True)
    os.replace(beside, path)
    files.sync_directory(path.parent)


def write_shard(path: Path, packed: Packed) -> None:
    try:
        with adios2.Stream(str(path), "w") as stream:
            stream.begin_step()
            for name, array in packed._asdict().items():
                array = np.ascontiguousarray(array)
                stream.write(name, array, list(array.shape), [0] * array.ndim, list(array.shape))
            stream.end_step()
    except RuntimeError as error:  # adios2 turns every failed write into this
        number = errno.ENOSPC if shutil.disk_usage(path.parent).free < 1 << 20 else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    (path / "profiling.json").unlink(missing_ok=True)  # timings: the one part that differs between equal data


def read(path: Path) -> Packed:
    """All shards under `path`, each byte as it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["schema"] != SCHEMA:
            raise files.BadFile(f"{path}: schema {manifest['schema']!r}, expected {SCHEMA!r}")
        listed = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise files.BadFile(f"{path / MANIFEST}: missing or unreadable ({error})") from None
    for name, expected in listed.items():
        file = path / name
        if not file.exists() or files.sha256(file) != expected:
            raise files.BadFile(f"{file}: {'altered since it was written' if file.exists() else 'missing'}")
    parts = []
    for shard in sorted({Path(name).parts[0] for name in listed}):
        with adios2.FileReader(str(path / shard)) as reader:
            parts.append(Packed(*(reader.read(name) for name in Packed._fields)))
    if not parts:
        raise files.BadFile(f"{path}: holds no structures")
    return Packed(*(np.concatenate(arrays) for arrays in zip(*parts)))


def content(packed: Packed) -> str:
    """sha256 over all arrays, whatever the shards in which they were written."""
    whole = hashlib.sha256()
    for name, array in packed._asdict().items():
        whole.update(f"{name} {array.dtype.str} {array.shape}".encode())
        whole.update(np.ascontiguousarray(array))
    return whole.hexdigest()
