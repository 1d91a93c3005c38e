"""A pretended device: its tensors hold their numbers on the CPU and refuse operations with other tensors.

An error that would stop a training on a GPU, such as a tensor left on the CPU, stops it here too, and results can be compared.
As on a GPU, a scalar of the CPU may meet tensors of the device, indices may be on either side, and `copy_` and `to` go
between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE_NAME = "meta"  # torch's device without memory of its own, whose gradients are computed in this thread
aten = torch.ops.aten
BETWEEN = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class DeviceTensor(torch.Tensor):
    """A tensor of the device; `here` holds its numbers."""

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> DeviceTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), dtype=here.dtype, device=DEVICE_NAME
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return run_operation(op, args, kwargs or {})

    def tolist(self) -> list:
        return self.here.tolist()


class InterceptFactories(TorchDispatchMode):
    """A mode that also intercepts functions which make tensors from a shape alone."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return run_operation(op, args, kwargs or {})


def run_operation(op, args, kwargs):
    flat, _ = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, DeviceTensor)]
    named = kwargs.get("device")
    device = torch.device(named) if named is not None else None
    if there and op not in BETWEEN:
        left = [x for x in (args[:1] if op in INDEXED else tensors) if not isinstance(x, DeviceTensor) and x.dim()]
        if left or (op in INDEXED and not isinstance(args[0], DeviceTensor)):
            raise RuntimeError(f"{op}: tensors on two devices, of shapes {[tuple(x.shape) for x in tensors]}")
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    inner_args, inner_kwargs = tree_map_only(DeviceTensor, lambda x: x.here, (args, kwargs))
    out = op(*inner_args, **inner_kwargs)
    if op is aten.copy_.default:
        return args[0]
    if device.type == DEVICE_NAME if device is not None else bool(there):
        same = {id(x.here): x for x in there}  # in place: the tensor itself
        return tree_map_only(torch.Tensor, lambda x: same[id(x)] if id(x) in same else DeviceTensor(x), out)
    return out


def to_device(tensor: torch.Tensor) -> torch.Tensor:
    return DeviceTensor(tensor.detach().clone())


def move_model(model: torch.nn.Module) -> torch.nn.Module:
    """Move a model in place; `model.to(device)` could not, as a parameter cannot become another class."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    new = to_device(tensor)
                    held[name] = torch.nn.Parameter(new, tensor.requires_grad) if held is module._parameters else new
    return model


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Pretend, inside the context, that there is a device."""
    whole = torch.tensor

    def tensor(numbers: object, device: object = None, **more: object) -> torch.Tensor:
        made = whole(numbers, **more)  # the dispatcher does not see a tensor made of numbers
        return DeviceTensor(made) if str(device) == DEVICE_NAME else made

    with (
        InterceptFactories(),
        patch.object(torch, "tensor", tensor),
        patch.object(torch, "is_autocast_enabled", lambda kind: False),  # this device has none
        patch.object(torch, "autocast", lambda *_, **__: nullcontext()),
    ):
        yield torch.device(DEVICE_NAME)
