"""Structures in ADIOS2 (BP5). The only file that imports adios2, and only to write, or to read as others would.

A dataset is a directory of shards, each a BP5 directory of one step, and a manifest, written last. So writing needs
memory for one shard. Inside each shard lies entry.json with all that is to be known of it; the same is its attribute
`gnnscale`. ADIOS2 2.12 waits for ever on a file whose index was cut off, or crashes; hence every file is compared with
the manifest before ADIOS2 sees it.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gnnscale.atoms.structure import Structure
from gnnscale.contract import files
from gnnscale.contract.dataset_card import Split, SplitCount
from gnnscale.data.storage import manifest as manifests
from gnnscale.data.storage.manifest import ENTRY, MANIFEST, Block, File, Manifest, Shard, ShardEntry
from gnnscale.data.storage.mapped import Shards, checksums, examine, open
from gnnscale.data.storage.packed import Packed, concatenate, content, from_disk, on_disk, pack

if TYPE_CHECKING:
    import adios2

__all__ = [
    "Packed",
    "ShardEntry",
    "Shards",
    "content",
    "entry_of",
    "join",
    "open",
    "opened",
    "read",
    "write",
    "write_shard",
]

SHARD = 8192  # structures
ALIGNED = 64  # bytes that ADIOS2 may leave between two arrays, at most; 8 were seen


def write(path: Path, structures: Iterable[Structure], split: Split, cutoff: float) -> Manifest:
    """All structures into shards under `path`, which appears only when it is whole."""
    beside = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    stream, entries = iter(structures), []
    while held := list(itertools.islice(stream, SHARD)):
        entries.append(write_shard(beside / f"{len(entries):05}.bp", held, split, cutoff))
    made = join(beside, entries)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(beside, path)
    files.sync_directory(path.parent)
    return made


def write_shard(
    path: Path,
    structures: Sequence[Structure],
    split: Split,
    cutoff: float,
    origins: Sequence[tuple[str, int]] | None = None,
) -> ShardEntry:
    """One shard, whole or absent. origins[k] is (name of a raw piece, number in it), by which a person finds it again."""
    packed, units = pack(structures, split, cutoff, origins)
    return write_packed(path, packed, cutoff, units)


def write_packed(path: Path, packed: Packed, cutoff: float, units: tuple[str, ...]) -> ShardEntry:
    arrays = on_disk(packed)
    beside = path.with_name(f".{path.name}.tmp")
    offsets = expected(arrays)
    sums = manifests.sums(packed)
    for _ in range(3):  # where ADIOS2 puts an array is part of what is written, and seen only then; once will mostly do
        blocks = {
            name: Block(offset=offsets[name], dtype=array.dtype.str, shape=array.shape, crc32=checksums(_bytes(array)))
            for name, array in arrays.items()
        }
        shard = Shard(
            name=path.name,
            structures=len(packed.natoms),
            atoms=len(packed.numbers),
            units=units,
            files={},
            variables=blocks,
        )
        entry = ShardEntry(cutoff=cutoff, shard=shard, sums=sums)
        shutil.rmtree(beside, ignore_errors=True)
        _write_bp5(beside, arrays, entry.model_dump_json())
        found = locate(beside / "data.0", arrays)
        if found == offsets:
            break
        offsets = found
    else:
        raise AssertionError(f"{path}: ADIOS2 puts equal arrays in other places each time")
    listed = {name: File(size=f.size, sha256=f.sha256) for name, f in files.describe(beside, ["."]).items()}
    entry = entry.model_copy(update={"shard": shard.model_copy(update={"files": listed})})
    (beside / ENTRY).write_text(entry.model_dump_json())
    files.sync_tree(beside)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(beside, path)
    files.sync_directory(path.parent)
    return entry


def _write_bp5(path: Path, arrays: dict[str, np.ndarray], attribute: str) -> None:
    import adios2  # takes a second or two, which a training need not wait for

    try:
        with adios2.Stream(str(path), "w") as stream:
            stream.begin_step()
            for name, array in arrays.items():
                stream.write(name, array, list(array.shape), [0] * array.ndim, list(array.shape))
            stream.write_attribute("gnnscale", attribute)
            stream.end_step()
    except RuntimeError as error:  # adios2 turns every failed write into this
        number = errno.ENOSPC if shutil.disk_usage(path.parent).free < 1 << 20 else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    (path / "profiling.json").unlink(missing_ok=True)  # timings: the one part that differs between equal data


def expected(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """Where ADIOS2 puts arrays unless they are large: one behind the other, at multiples of the size of an item."""
    offsets, end = {}, 0
    for name, array in arrays.items():
        offsets[name] = -(-end // array.itemsize) * array.itemsize
        end = offsets[name] + array.nbytes
    return offsets


def locate(file: Path, arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """Where each array lies in data.0: in the order of writing, each as a whole, at a multiple of the size of an item."""
    data, offsets, end = np.memmap(file, np.uint8, "r"), {}, 0
    for name, array in arrays.items():
        raw = np.frombuffer(_bytes(array), np.uint8)
        places = range(-(-end // array.itemsize) * array.itemsize, end + ALIGNED, array.itemsize)
        at = next((at for at in places if np.array_equal(data[at : at + len(raw)], raw)), None)
        if at is None:
            raise AssertionError(f"{file}: {name} is not where ADIOS2 has put arrays so far")
        offsets[name], end = at, at + len(raw)
    return offsets


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


def entry_of(path: Path) -> ShardEntry:
    """Of a shard that is whole; else BadFile."""
    entry = manifests.read(path / ENTRY, ShardEntry)
    examine(path, entry.shard, check=False)
    return entry


def join(path: Path, entries: Sequence[ShardEntry]) -> Manifest:
    """The manifest of shards that lie under `path`, in this order; `shard.name` is relative to it, `..` included."""
    cutoffs = sorted({entry.cutoff for entry in entries})
    if len(cutoffs) > 1:
        raise ValueError(f"{path}: shards with edges counted at {' and '.join(map(str, cutoffs))} Angstrom")
    total = manifests.add([entry.sums for entry in entries])
    made = Manifest(cutoff=cutoffs[0] if cutoffs else 0.0, shards=tuple(e.shard for e in entries), total=total)
    if entries:
        made = made.model_copy(
            update={"total": total.model_copy(update={"counts": _groups(Shards(path, made), total)})}
        )
    files.write_model(path / MANIFEST, made)
    return made


def _groups(shards: Shards, total: manifests.Sums) -> dict[str, SplitCount]:
    """The counts with each group counted once, though several shards have it."""
    counts = {}
    for index, (name, count) in enumerate(total.counts.items()):
        groups = len(np.unique(shards.group[shards.split == index]))
        counts[name] = count.model_copy(update={"groups": groups})
    return counts


@contextmanager
def opened(path: Path) -> Iterator[adios2.FileReader]:
    """Anybody's BP file, to be read as it is."""
    import adios2

    io = adios2.Adios().declare_io(str(path))
    io.set_parameter("OpenTimeoutSecs", "2")  # it would wait an hour for an index that was cut off
    try:
        with adios2.FileReader(io, str(path)) as reader:
            yield reader
    finally:  # its reader leaves its timings in this place, whatever it is asked
        Path(f"/tmp/{path.name}_{os.getpid():x}_profiling.json").unlink(missing_ok=True)


def read(path: Path) -> Packed:
    """All shards under `path` through ADIOS2, after comparing every byte with the manifest."""
    shards, parts = open(path, check=True), []
    for k, shard in enumerate(shards.manifest.shards):
        with opened(path / shard.name) as reader:
            parts.append(from_disk({name: reader.read(name) for name in shard.variables}))
        rows = slice(shards.first[k], shards.first[k + 1])
        parts[-1].origin[:, 0] = shards.unit[rows]  # each shard has a list of units of its own
    return concatenate(parts)
