"""Checkpoints that know nothing of ranks or ZeRO: every tensor whole and by its name, in a few safetensors files.

Each rank writes a share of the tensors and hashes what it writes while it does, so nothing is read back, and no rank
holds more than one tensor at a time besides its own state. So a run may go on with other ranks, or another ZeRO stage.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from gnnscale.contract import files

MANIFEST = "manifest.json"
Layout = list[tuple[str, tuple[int, ...]]]  # (name, shape) of every tensor, in the order in which they come


class Found(NamedTuple):
    """A checkpoint that was not torn when it was looked at."""

    directory: Path
    key: str
    progress: dict

    def reader(self) -> Callable[[str], Tensor]:
        opened = [safe_open(path, "pt") for path in sorted(self.directory.glob("*.safetensors"))]
        where = {name: part for part in opened for name in part.keys()}  # noqa: SIM118, not a dict
        return lambda name: where[name].get_tensor(name)


def save(directory: Path, key: str, progress: dict, layout: Layout, tensors: Iterable[Tensor]) -> None:
    """Called on every rank, as making a tensor whole may need all of them. Renamed into place when all is on the disk."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    beside = directory.with_name(f".{directory.name}.tmp")
    if rank == 0:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    torch.distributed.barrier()
    part = f"{rank:05}.safetensors"
    mine = (tensor for k, tensor in enumerate(tensors) if k % size == rank)
    written = {part: write_part(beside / part, layout[rank::size], mine)} if layout[rank::size] else {}
    for _ in mine:
        pass  # take part in the gathering of what others write
    of_all: list[dict] = [{}] * size
    torch.distributed.all_gather_object(of_all, written)
    if rank == 0:
        listed = {name: digest for each in of_all for name, digest in each.items()}
        files.write(beside / MANIFEST, json.dumps({"key": key, "progress": progress, "files": listed}))
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(beside, directory)
        files.sync_directory(directory.parent)
    torch.distributed.barrier()


def write_part(path: Path, layout: Layout, tensors: Iterable[Tensor]) -> str:
    """A safetensors file written as its tensors come, and the digest of what went into it."""
    header, offset = {}, 0
    for name, shape in layout:
        end = offset + 4 * math.prod(shape)
        header[name], offset = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}, end
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:

        def put(content: bytes | memoryview) -> None:
            digest.update(content)
            file.write(content)

        put(len(said).to_bytes(8, "little") + said)
        for (name, shape), tensor in zip(layout, tensors):
            assert tensor.shape == shape and tensor.dtype == torch.float32, (name, tensor.shape, shape, tensor.dtype)
            put(memoryview(tensor.detach().cpu().contiguous().view(-1).numpy()).cast("B"))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


PINNED = "pinned-"  # checkpoints that are kept when newer ones come


def listed(root: Path, pinned: bool = False) -> list[Path]:
    """Oldest first; what is still being written has another name."""
    return sorted(root.glob(f"{PINNED if pinned else ''}step-*"))


def pin(directory: Path) -> None:
    """A second name for a checkpoint; on a file system without hard links it is copied."""
    there = directory.with_name(f"{PINNED}{directory.name}")
    beside = directory.with_name(f".{there.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        shutil.copytree(directory, beside, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(directory, beside)
        files.sync_tree(beside)
    shutil.rmtree(there, ignore_errors=True)
    os.replace(beside, there)
    files.sync_directory(there.parent)


def keep(root: Path, count: int) -> None:
    for old in listed(root)[:-count]:
        shutil.rmtree(old)


def newest(root: Path, pinned: bool = False) -> Found | None:
    """The newest whole checkpoint, agreed by all ranks; a torn one is passed over, and said so."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if rank == 0 and not pinned:  # else it is another training's folder, which only that one may sweep
        for torn in root.glob(".*.tmp"):
            shutil.rmtree(torn)
    for directory in reversed(listed(root, pinned)):
        of_all: list[Found | None] = [None] * size
        torch.distributed.all_gather_object(of_all, look(directory, rank, size))
        if all(of_all):
            return of_all[0]
        print(f"{directory.name} is torn; trying the one before it", flush=True)
    return None


def look(directory: Path, rank: int = 0, size: int = 1) -> Found | None:
    """Whether a checkpoint is as its manifest says. Each rank reads a share of the files: all that is hashed, once."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        mine = sorted(manifest["files"].items())[rank::size]
        if all(files.sha256(directory / name) == digest for name, digest in mine):
            return Found(directory, manifest["key"], manifest["progress"])
    except (OSError, ValueError, KeyError):
        pass
    return None
