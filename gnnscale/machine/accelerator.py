"""Which accelerator is here: the one place that asks. CUDA is also what ROCm's build of torch answers to; XPU is Intel's.

XPU was never run: there was no such GPU. What is written for it is what torch 2.13 and DeepSpeed 0.19.8 say of themselves
(torch.xpu, the backend xccl, DS_ACCELERATOR); that the right one is chosen is tested against stand-ins for torch.
"""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

import torch

Kind = Literal["cuda", "xpu", "cpu"]
BACKENDS: dict[str, str] = {"cuda": "nccl", "xpu": "xccl", "cpu": "gloo"}


class Device(NamedTuple):
    """One GPU, as this process sees it."""

    name: str
    memory: int  # bytes


def kind() -> Kind:
    """GPUs if any is to be seen. torch holds code for one kind, or for none; were it two, the first."""
    return next((name for name in ("cuda", "xpu") if module(name).is_available()), "cpu")


def module(name: str):
    """torch.cuda and torch.xpu have the same verbs."""
    return getattr(torch, name)


def backend() -> str:
    """Of torch.distributed, for tensors of the accelerator. Ranks that share a GPU, as where a laptop's doctor asks two to
    add a number, cannot use that of GPUs, which refuses the second."""
    shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > count() > 0
    return BACKENDS["cpu" if shared else kind()]


def count() -> int:
    """GPUs that this process sees, which may be fewer than the machine has."""
    return 0 if kind() == "cpu" else module(kind()).device_count()


def index(local_rank: int) -> int:
    """Of the device of this rank among those that it sees. Ranks share GPUs where there are more of them."""
    seen = count()
    return local_rank % seen if seen else local_rank


def take(local_rank: int) -> torch.device:
    """The device of this rank, taken for all that follows."""
    here = kind()
    # DeepSpeed guesses for itself, by what is installed: it might see another one than torch does.
    os.environ.setdefault("DS_ACCELERATOR", here)
    if here == "cpu":
        return torch.device("cpu")
    mine = torch.device(here, index(local_rank))
    module(here).set_device(mine)
    return mine


def devices() -> list[Device]:
    here = kind()
    found = [module(here).get_device_properties(k) for k in range(count())]
    return [Device(each.name, each.total_memory) for each in found]


def identity(local_rank: int) -> str:
    """Of the GPU that this rank takes, other than that of any other GPU; "" for none."""
    here = kind()
    if here == "cpu":
        return ""
    mine = index(local_rank)
    unique = getattr(module(here).get_device_properties(mine), "uuid", None)
    return str(unique) if unique else f"{os.environ.get('ZE_AFFINITY_MASK', '')}#{mine}"


def wait() -> None:
    """Until the accelerator has done all that it was given: before any look at a clock."""
    if kind() != "cpu":
        module(kind()).synchronize()
