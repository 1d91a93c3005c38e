"""A device that is not there: tensors that say they are on a GPU, hold their numbers on the CPU, and may not be mixed with
others. What would stop a training on a GPU, a tensor left behind, stops here too; and what comes out can be compared.

As on a GPU, a number (a tensor of no dimension) of the CPU may meet those of the device, indices may be on either side, and
`copy_` and `to` go between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

NAME = "meta"  # of torch's kinds the one that has no memory of its own, and whose gradients are computed in this thread
aten = torch.ops.aten
BETWEEN = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class There(torch.Tensor):
    """A tensor of the device: `here` holds its numbers."""

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> There:
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), dtype=here.dtype, device=NAME
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return carried_out(op, args, kwargs or {})

    def tolist(self) -> list:
        return self.here.tolist()


class Intercepted(TorchDispatchMode):
    """For what makes tensors of nothing but a shape."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return carried_out(op, args, kwargs or {})


def carried_out(op, args, kwargs):
    flat, _ = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    asked = kwargs.get("device")
    device = torch.device(asked) if asked is not None else None
    if there and op not in BETWEEN:
        left = [x for x in (args[:1] if op in INDEXED else tensors) if not isinstance(x, There) and x.dim()]
        if left or (op in INDEXED and not isinstance(args[0], There)):
            raise RuntimeError(f"{op}: tensors on two devices, of shapes {[tuple(x.shape) for x in tensors]}")
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    inner_args, inner_kwargs = tree_map_only(There, lambda x: x.here, (args, kwargs))
    out = op(*inner_args, **inner_kwargs)
    if op is aten.copy_.default:
        return args[0]
    if device.type == NAME if device is not None else bool(there):
        same = {id(x.here): x for x in there}  # in place: the tensor itself
        return tree_map_only(torch.Tensor, lambda x: same[id(x)] if id(x) in same else There(x), out)
    return out


def to_device(tensor: torch.Tensor) -> torch.Tensor:
    return There(tensor.detach().clone())


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """In place, as `model.to(device)` would: it changes data under a parameter, which cannot become another class."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    new = to_device(tensor)
                    held[name] = torch.nn.Parameter(new, tensor.requires_grad) if held is module._parameters else new
    return model


@contextmanager
def device() -> Iterator[torch.device]:
    """Inside, there is one."""
    whole = torch.tensor

    def tensor(numbers: object, device: object = None, **more: object) -> torch.Tensor:
        made = whole(numbers, **more)  # the dispatcher sees nothing of numbers
        return There(made) if str(device) == NAME else made

    with (
        Intercepted(),
        patch.object(torch, "tensor", tensor),
        patch.object(torch, "is_autocast_enabled", lambda kind: False),  # of which there is none here
        patch.object(torch, "autocast", lambda *_, **__: nullcontext()),
    ):
        yield torch.device(NAME)
