"""The choice between kernels and chunks for the messages of a layer."""

from __future__ import annotations

import sys
from functools import cache

import torch
from torch import Tensor
from torch.autograd.forward_ad import make_dual, unpack_dual

from gnnscale.models.kernels.chunked import Chunk, Sums, Tangents, Weights


@cache
def find_fused_sums(device: torch.device) -> type[torch.autograd.Function] | None:
    """Return the sums as Triton kernels if this GPU runs them and they agree with `Sums`; a CPU never imports Triton."""
    try:
        from gnnscale.models.kernels.fused_sums import FusedSums
    except ImportError:
        return None
    from gnnscale.models.kernels.verified import reason_not_to_use

    why = reason_not_to_use(FusedSums, device)
    if why:
        print(f"fused kernels are not used, chunks are: {why}", file=sys.stderr, flush=True)
    return None if why else FusedSums


def can_fuse(x: Tensor) -> bool:
    """Return whether kernels take tensors of this device and precision."""
    return (
        x.is_cuda
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and find_fused_sums(x.device) is not None
    )


def chunked_messages(parts: list[Chunk], table: Tensor, basis: Tensor, scale: Tensor, weights: Weights):
    """Return s (A, W) and v (3, A, K); tangents of forward-mode differentiation go through."""
    (table, t_table), (basis, t_basis), (scale, t_scale) = (unpack_dual(x) for x in (table, basis, scale))
    if t_basis is None:
        function = (find_fused_sums(table.device) if can_fuse(table) else None) or Sums
        return function.apply(parts, table, basis, scale, *weights)
    s, v, t_s, t_v = Tangents.apply(parts, table, t_table, basis, t_basis, scale, t_scale, *weights)
    return make_dual(s, t_s), make_dual(v, t_v)
