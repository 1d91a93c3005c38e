"""Shards in ADIOS2 (BP5). The only file that imports adios2, to write shards and to read them as other programs would.

A dataset is a directory of shards, each a BP5 directory of one step, and a manifest, written last. So writing needs
memory for one shard. Each shard holds a file entry.json that describes it; its attribute `gnnscale` holds the same.
ADIOS2 2.12 waits forever on a file whose index was truncated, or crashes; so every file is compared with the manifest
before ADIOS2 opens it.
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
from gnnscale.data.storage.manifest import (
    ENTRY,
    MANIFEST,
    Manifest,
    Shard,
    ShardEntry,
    ShardSums,
    StoredArray,
    StoredFile,
    add_sums,
    read_checked,
    sum_up,
)
from gnnscale.data.storage.mapped import Shards, check_shard, checksums, open_shards
from gnnscale.data.storage.packed import Packed, concatenate, from_arrays, pack, to_arrays

if TYPE_CHECKING:
    import adios2

STRUCTURES_PER_SHARD = 8192
MAX_PADDING_BYTES = 64  # that ADIOS2 may leave between two arrays; at most 8 were seen


def write(path: Path, structures: Iterable[Structure], split: Split, cutoff: float) -> Manifest:
    """Write all structures into shards under `path`, which appears only when it is complete."""
    beside = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    stream = iter(structures)
    entries: list[ShardEntry] = []
    while held := list(itertools.islice(stream, STRUCTURES_PER_SHARD)):
        entries.append(write_shard(beside / f"{len(entries):05}.bp", held, split, cutoff))
    made = write_manifest(beside, entries)
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
    """Write one shard, which appears only when it is complete.

    origins[k] is (name of a piece of the raw files, number in it), by which a person finds structure k again.
    """
    packed, units = pack(structures, split, cutoff, origins)
    return write_packed(path, packed, cutoff, units)


def write_packed(path: Path, packed: Packed, cutoff: float, units: tuple[str, ...]) -> ShardEntry:
    """Write packed structures as one shard; `units` names the pieces to which `packed.origin` refers."""
    arrays, beside = to_arrays(packed), path.with_name(f".{path.name}.tmp")
    shard = Shard(
        name=path.name,
        structures=len(packed.natoms),
        atoms=len(packed.numbers),
        units=units,
        files={},
        variables={},
    )
    entry = _write_arrays(beside, arrays, ShardEntry(cutoff=cutoff, shard=shard, sums=sum_up(packed)))
    outputs = files.describe_outputs(beside, ["."])
    listed = {name: StoredFile(size=output.size, sha256=output.sha256) for name, output in outputs.items()}
    entry = entry.model_copy(update={"shard": entry.shard.model_copy(update={"files": listed})})
    (beside / ENTRY).write_text(entry.model_dump_json())
    files.sync_tree(beside)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(beside, path)
    files.sync_directory(path.parent)
    return entry


def _write_arrays(path: Path, arrays: dict[str, np.ndarray], entry: ShardEntry) -> ShardEntry:
    """Write the arrays with their description, and return the entry with the offset of each.

    The offsets are part of what is written and known only afterwards, so a wrong guess costs a second writing.
    """
    offsets = expected_offsets(arrays)
    for _ in range(3):
        variables = {name: _describe_array(array, offsets[name]) for name, array in arrays.items()}
        entry = entry.model_copy(update={"shard": entry.shard.model_copy(update={"variables": variables})})
        shutil.rmtree(path, ignore_errors=True)
        _write_bp5(path, arrays, entry.model_dump_json())
        found = find_offsets(path / "data.0", arrays)
        if found == offsets:
            return entry
        offsets = found
    raise AssertionError(f"{path}: ADIOS2 puts equal arrays at other offsets each time")


def _describe_array(array: np.ndarray, offset: int) -> StoredArray:
    return StoredArray(offset=offset, dtype=array.dtype.str, shape=array.shape, crc32=checksums(_bytes(array)))


def _write_bp5(path: Path, arrays: dict[str, np.ndarray], attribute: str) -> None:
    import adios2  # takes a second or two; a training needs only the map and not this

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


def expected_offsets(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """Return the offsets at which ADIOS2 puts small arrays: one after another, at multiples of the size of an item."""
    offsets, end = {}, 0
    for name, array in arrays.items():
        offsets[name] = -(-end // array.itemsize) * array.itemsize
        end = offsets[name] + array.nbytes
    return offsets


def find_offsets(file: Path, arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """Find each array in data.0: in the order of writing, contiguous, at a multiple of the size of an item."""
    data, offsets, end = np.memmap(file, np.uint8, "r"), {}, 0
    for name, array in arrays.items():
        raw = np.frombuffer(_bytes(array), np.uint8)
        candidates = range(-(-end // array.itemsize) * array.itemsize, end + MAX_PADDING_BYTES, array.itemsize)
        offset = next((at for at in candidates if np.array_equal(data[at : at + len(raw)], raw)), None)
        if offset is None:
            raise AssertionError(f"{file}: {name} is not where ADIOS2 has put arrays so far")
        offsets[name], end = offset, offset + len(raw)
    return offsets


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def read_entry(path: Path) -> ShardEntry:
    """Read the description of a shard after checking that its files are complete; else raise BadFile."""
    entry = read_checked(path / ENTRY, ShardEntry)
    check_shard(path, entry.shard, check=False)
    return entry


def read_shard(folder: Path, entry: ShardEntry) -> Packed:
    """Read one shard under `folder` through its map; its origins refer to the pieces that the entry names."""
    shard = entry.shard
    made = Shards(folder, Manifest(cutoff=entry.cutoff, shards=(shard,), total=entry.sums))
    packed = made.select(np.arange(len(made)))
    packed.origin[:, 0] = made.block(0, "unit")
    return packed


def write_manifest(path: Path, entries: Sequence[ShardEntry]) -> Manifest:
    """Write the manifest of shards that lie under `path`, in this order; `shard.name` is relative to it and may have `..`."""
    cutoffs = sorted({entry.cutoff for entry in entries})
    if len(cutoffs) > 1:
        raise ValueError(f"{path}: shards with edges counted at {' and '.join(map(str, cutoffs))} Angstrom")
    total = add_sums([entry.sums for entry in entries])
    made = Manifest(cutoff=cutoffs[0] if cutoffs else 0.0, shards=tuple(e.shard for e in entries), total=total)
    if entries:
        made = made.model_copy(
            update={"total": total.model_copy(update={"counts": _count_groups_once(Shards(path, made), total)})}
        )
    files.write_model(path / MANIFEST, made)
    return made


def _count_groups_once(shards: Shards, total: ShardSums) -> dict[str, SplitCount]:
    """Return the counts with each group counted once, even if several shards have it."""
    counts = {}
    for index, (name, count) in enumerate(total.counts.items()):
        groups = len(np.unique(shards.group[shards.split == index]))
        counts[name] = count.model_copy(update={"groups": groups})
    return counts


@contextmanager
def open_bp(path: Path) -> Iterator[adios2.FileReader]:
    """Open a BP file of any program for reading."""
    import adios2

    io = adios2.Adios().declare_io(str(path))
    io.set_parameter("OpenTimeoutSecs", "2")  # it would wait an hour for an index that was truncated
    try:
        with adios2.FileReader(io, str(path)) as reader:
            yield reader
    finally:  # its reader writes its timings to this path, whatever it is configured to do
        Path(f"/tmp/{path.name}_{os.getpid():x}_profiling.json").unlink(missing_ok=True)


def read(path: Path) -> Packed:
    """Read all shards under `path` through ADIOS2, after comparing every byte with the manifest."""
    shards, parts = open_shards(path, check=True), []
    for k, shard in enumerate(shards.manifest.shards):
        with open_bp(path / shard.name) as reader:
            parts.append(from_arrays({name: reader.read(name) for name in shard.variables}))
        rows = slice(shards.first[k], shards.first[k + 1])
        parts[-1].origin[:, 0] = shards.unit[rows]  # each shard has its own list of units
    return concatenate(parts)
