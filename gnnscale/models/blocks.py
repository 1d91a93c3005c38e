"""What any architecture here is made of: initialisation, radial basis, cutoff envelope, sums over edges.

The two sums over edges are autograd functions because torch's own index_select, add and mul each allocate an (E, W)
tensor; torch's embedding_bag does the same in one pass but cannot be differentiated twice, as exact forces need.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(inputs: int, outputs: int, bias: bool = False, zero: bool = False) -> nn.Linear:
    """Weights of variance 1/inputs, or all zero for a readout, whose first answer is then 0 at every width."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.zeros_(layer.weight) if zero else nn.init.normal_(layer.weight, std=1 / math.sqrt(inputs))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def rms_norm(x: Tensor) -> Tensor:
    """Each row to unit rms; without a gain, as every use is followed by a matrix that has one."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def bessel(r: Tensor, cutoff: float, count: int) -> Tensor:
    """sin(n pi r/r_c) / r for n = 1..count (DimeNet, eq. 7), scaled to unit rms over a uniform density.  # (E, count)"""
    n = torch.arange(1, count + 1, device=r.device, dtype=r.dtype)
    return torch.sin(r * (n * (math.pi / cutoff))) * (math.sqrt(2 / 3) * cutoff / r)  # r is (E, 1)


def envelope(r: Tensor, cutoff: float) -> Tensor:
    """(1 - (r/r_c)^4)^3, zero beyond r_c: value, slope and curvature are continuous there."""
    return (1 - (r * (1 / cutoff)) ** 4).clamp(min=0) ** 3


class _PairSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, pairs: Tensor) -> Tensor:
        ctx.save_for_backward(pairs)
        ctx.rows = len(table)
        return F.embedding_bag(pairs, table, mode="sum")

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (pairs,) = ctx.saved_tensors
        table = gradient.new_zeros(ctx.rows, gradient.shape[1])
        return table.index_add(0, pairs[:, 0], gradient).index_add(0, pairs[:, 1], gradient), None


def pair_sum(table: Tensor, pairs: Tensor) -> Tensor:
    """table[pairs[:, 0]] + table[pairs[:, 1]], in one pass.  # (E, W) from (2A, W) and (E, 2)"""
    return _PairSum.apply(table, pairs)


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, messages: Tensor, weights: Tensor, receivers: Tensor, starts: Tensor) -> Tensor:
        ctx.save_for_backward(messages, weights, receivers)
        every = torch.arange(len(messages), device=messages.device)
        scale = weights.to(messages.dtype)
        return F.embedding_bag(every, messages, starts, mode="sum", per_sample_weights=scale)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        messages, weights, receivers = ctx.saved_tensors
        gathered = gradient.index_select(0, receivers)  # (E, W)
        slope = (gathered * messages).sum(1).to(weights.dtype) if ctx.needs_input_grad[1] else None
        return gathered * weights.to(gathered.dtype)[:, None], slope, None, None


def weighted_sum(messages: Tensor, weights: Tensor, receivers: Tensor, starts: Tensor) -> Tensor:
    """sum_j weights_ij messages_ij for edges sorted by receiver i, whose edges begin at starts[i].  # (A, W)"""
    return _WeightedSum.apply(messages, weights, receivers, starts)
