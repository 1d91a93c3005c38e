"""The accelerator of this machine: its kind, its devices and its backend. ROCm's build of torch is also called cuda.

XPU (Intel) was never run: there was no such GPU. Its names are from the documentation of torch 2.13 and DeepSpeed 0.19.8
(torch.xpu, the backend xccl, DS_ACCELERATOR); the choice between kinds is tested against stand-ins for torch.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Literal, NamedTuple

import torch

Kind = Literal["cuda", "xpu", "cpu"]
BACKENDS: dict[Kind, str] = {"cuda": "nccl", "xpu": "xccl", "cpu": "gloo"}


class Gpu(NamedTuple):
    """A GPU that this process sees."""

    name: str
    memory: int  # bytes


def detect_kind() -> Kind:
    """Return the kind of the GPUs, or "cpu" if none is visible. torch is built for one kind, or for none."""
    kinds: tuple[Kind, ...] = ("cuda", "xpu")
    return next((kind for kind in kinds if torch_module(kind).is_available()), "cpu")


def torch_module(kind: Kind) -> ModuleType:
    """Return torch.cuda or torch.xpu, whose functions have the same names."""
    module: ModuleType = getattr(torch, kind)
    return module


def choose_backend() -> str:
    """Return the backend of torch.distributed for tensors of the accelerator.

    Ranks that share a GPU, as in the doctor's trial on a laptop, need the one of CPUs: that of GPUs refuses the second rank.
    """
    shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > count_devices() > 0
    return BACKENDS["cpu" if shared else detect_kind()]


def count_devices() -> int:
    """Return how many GPUs this process sees, which may be fewer than the machine has."""
    kind = detect_kind()
    return 0 if kind == "cpu" else int(torch_module(kind).device_count())


def device_index(local_rank: int) -> int:
    """Return the index of this rank's GPU among those that it sees. More ranks than GPUs share them."""
    seen = count_devices()
    return local_rank % seen if seen else local_rank


def take_device(local_rank: int) -> torch.device:
    """Make the device of this rank the current one, and return it."""
    kind = detect_kind()
    # DeepSpeed chooses by what is installed, and might choose another kind than torch.
    os.environ.setdefault("DS_ACCELERATOR", kind)
    if kind == "cpu":
        return torch.device("cpu")
    device = torch.device(kind, device_index(local_rank))
    torch_module(kind).set_device(device)
    return device


def list_devices() -> list[Gpu]:
    kind = detect_kind()
    properties = [torch_module(kind).get_device_properties(k) for k in range(count_devices())]
    return [Gpu(each.name, each.total_memory) for each in properties]


def identify_device(local_rank: int) -> str:
    """Return an identity of this rank's GPU which no other GPU has; "" if it uses none."""
    kind = detect_kind()
    if kind == "cpu":
        return ""
    index = device_index(local_rank)
    unique = getattr(torch_module(kind).get_device_properties(index), "uuid", None)
    return str(unique) if unique else f"{os.environ.get('ZE_AFFINITY_MASK', '')}#{index}"


def synchronize() -> None:
    """Wait until the accelerator has done all of its work, as one must before reading a clock."""
    if detect_kind() != "cpu":
        torch_module(detect_kind()).synchronize()
