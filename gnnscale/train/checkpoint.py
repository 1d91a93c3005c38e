"""Checkpoints that do not depend on ranks or ZeRO: every tensor whole and by its name, in a few safetensors files.

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
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from gnnscale.contract import files

MANIFEST = "manifest.json"
TensorShapes = list[tuple[str, tuple[int, ...]]]  # (name, shape) of every tensor, in the order in which they come


class Checkpoint(NamedTuple):
    """A checkpoint that was whole when it was read."""

    directory: Path
    key: str
    progress: dict[str, Any]  # fields of loop.Progress

    def open_reader(self) -> Callable[[str], Tensor]:
        """Open the files, and return the function that reads a tensor by its name."""
        opened = [safe_open(path, "pt") for path in sorted(self.directory.glob("*.safetensors"))]
        file_of = {name: file for file in opened for name in file.keys()}  # noqa: SIM118, not a dict
        return lambda name: file_of[name].get_tensor(name)


def save(directory: Path, key: str, progress: dict[str, Any], layout: TensorShapes, tensors: Iterable[Tensor]) -> None:
    """Write a checkpoint and rename it into place. Every rank calls this, as making a tensor whole may need all of them."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    beside = directory.with_name(f".{directory.name}.tmp")
    if rank == 0:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    torch.distributed.barrier()
    part = f"{rank:05}.safetensors"
    own_tensors = (tensor for k, tensor in enumerate(tensors) if k % size == rank)
    written = {part: write_part(beside / part, layout[rank::size], own_tensors)} if layout[rank::size] else {}
    for _ in own_tensors:
        pass  # take part in the gathering of what others write
    of_ranks: list[dict[str, str]] = [{}] * size
    torch.distributed.all_gather_object(of_ranks, written)
    if rank == 0:
        listed = {name: digest for each in of_ranks for name, digest in each.items()}
        files.write(beside / MANIFEST, json.dumps({"key": key, "progress": progress, "files": listed}))
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(beside, directory)
        files.sync_directory(directory.parent)
    torch.distributed.barrier()


def write_part(path: Path, layout: TensorShapes, tensors: Iterable[Tensor]) -> str:
    """Write a safetensors file as its tensors come, and return its digest."""
    header, offset = {}, 0
    for name, shape in layout:
        end = offset + 4 * math.prod(shape)
        header[name], offset = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}, end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:

        def put(content: bytes | memoryview) -> None:
            digest.update(content)
            file.write(content)

        put(len(encoded).to_bytes(8, "little") + encoded)
        for (name, shape), tensor in zip(layout, tensors):
            assert tensor.shape == shape and tensor.dtype == torch.float32, (name, tensor.shape, shape, tensor.dtype)
            put(tensor.detach().cpu().contiguous().view(-1).numpy().data.cast("B"))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


PINNED_PREFIX = "pinned-"  # checkpoints that are kept when newer ones come


def list_checkpoints(root: Path, pinned: bool = False) -> list[Path]:
    """List the checkpoints, oldest first; one that is being written has another name."""
    return sorted(root.glob(f"{PINNED_PREFIX if pinned else ''}step-*"))


def pin(directory: Path) -> None:
    """Give a checkpoint a second name; on a file system without hard links, copy it."""
    pinned = directory.with_name(f"{PINNED_PREFIX}{directory.name}")
    beside = directory.with_name(f".{pinned.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        shutil.copytree(directory, beside, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(directory, beside)
        files.sync_tree(beside)
    shutil.rmtree(pinned, ignore_errors=True)
    os.replace(beside, pinned)
    files.sync_directory(pinned.parent)


def remove_older(root: Path, count: int) -> None:
    """Remove all checkpoints but the newest `count`."""
    for old in list_checkpoints(root)[:-count]:
        shutil.rmtree(old)


def find_newest(root: Path, pinned: bool = False) -> Checkpoint | None:
    """Find the newest checkpoint that is whole on all ranks; report and skip a torn one."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if rank == 0 and not pinned:  # else it is another training's folder, which only that one may sweep
        for torn in root.glob(".*.tmp"):
            shutil.rmtree(torn)
    for directory in reversed(list_checkpoints(root, pinned)):
        of_ranks: list[Checkpoint | None] = [None] * size
        torch.distributed.all_gather_object(of_ranks, read_if_whole(directory, rank, size))
        if all(of_ranks):
            return of_ranks[0]
        print(f"{directory.name} is torn; trying the one before it", flush=True)
    return None


def read_if_whole(directory: Path, rank: int = 0, size: int = 1) -> Checkpoint | None:
    """Read a checkpoint if it is as its manifest says. Each rank hashes a share of the files."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        own_files = sorted(manifest["files"].items())[rank::size]
        if all(files.sha256(directory / name) == digest for name, digest in own_files):
            return Checkpoint(directory, manifest["key"], manifest["progress"])
    except (OSError, ValueError, KeyError):
        pass
    return None
