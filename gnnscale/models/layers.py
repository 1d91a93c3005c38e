"""Building blocks of all networks: initialisation, radial basis, cutoff envelope, sums over edges.

Gathers and sums over edges are products with sparse matrices, done by embedding_bag: 2 to 15 times faster on a CPU than
index_add and broadcasting, and deterministic. As it cannot be differentiated twice, it is wrapped here so that it can.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = TypeVar("Function", bound=Callable[..., Any])
BASE_CHANNELS = 8


class StandIn(ABC):
    """A stand-in for a tensor, with which gnnscale/models/recording.py learns what a network computes."""

    @abstractmethod
    def record_call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Record a call of a function on stand-ins, and return the stand-in for its result."""


def block(function: Function) -> Function:
    """Make a function known by its name to those that record a network: what it does inside, they do in their own way."""

    @wraps(function)
    def call(*arguments: Any) -> Any:
        stand_in = next((each for each in arguments if isinstance(each, StandIn)), None)
        return function(*arguments) if stand_in is None else stand_in.record_call(call, arguments)

    return call  # type: ignore[return-value] # its arguments have no keywords, as Callable cannot say


def make_linear(inputs: int, outputs: int, bias: bool = False, zero: bool = False) -> nn.Linear:
    """Make a matrix of variance 1/inputs, or of zeros for a readout, whose first output is then 0 at every width."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.zeros_(layer.weight) if zero else nn.init.normal_(layer.weight, std=1 / math.sqrt(inputs))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


@block
def rms_norm(x: Tensor) -> Tensor:
    """Scale each row to unit rms; without a gain, as a matrix follows every use."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


@block
def vector_lengths(vectors: Tensor) -> Tensor:
    """Return sqrt(|V_ik|^2 + 1), which is smooth at 0: from (3, A, K) to (A, K)."""
    return torch.sqrt(vectors.square().sum(0) + 1)


@block
def linear_by_source(x: Tensor, weight: Tensor, source: Tensor, sources: int) -> Tensor:
    """Multiply each atom's x with the matrix of its source (A,); all matrices lie one above the other in `weight`."""
    heads = weight.view(sources, -1, x.shape[1])
    out = x.new_zeros(len(x), heads.shape[1])
    for index, head in enumerate(heads):
        mine = torch.nonzero(source == index)[:, 0]
        out = out.index_add(0, mine, F.linear(x.index_select(0, mine), head).to(out.dtype))
    return out


@block
def read_atoms(out: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return energies (A,) and forces (A, 3) from energies and gates (A, 1 + K) and the vectors (3, A, K) that they gate.

    A mean over channels, times those at width 64: so that widths move alike at one rate, which
    tests/gnnscale/train/test_schedule.py shows.
    """
    return out[:, 0], (vectors * out[:, 1:]).mean(2).t() * BASE_CHANNELS


def bessel(r: Tensor, cutoff: float, count: int) -> Tensor:
    """Return sin(n pi r/r_c) / r for n = 1..count (DimeNet, eq. 7), of unit rms over a uniform density; r is (E, 1)."""
    n = torch.arange(1, count + 1, device=r.device, dtype=r.dtype)
    return torch.sin(r * (n * (math.pi / cutoff))) * (math.sqrt(2 / 3) * cutoff / r)  # (E, count)


def envelope(r: Tensor, cutoff: float) -> Tensor:
    """Return (1 - (r/r_c)^4)^3, zero beyond r_c, where value, slope and curvature are continuous."""
    return (1 - (r * (1 / cutoff)) ** 4).clamp(min=0) ** 3


class Layout(NamedTuple):
    """The places of the n entries of a sparse matrix, sorted by row as embedding_bag needs them."""

    rows: Tensor  # (n,) ascending
    columns: Tensor  # (n,)
    starts: Tensor  # (rows,) first entry of each row
    order: Tensor  # (n,) where these entries are in the transpose


class Pattern(NamedTuple):
    """A sparse matrix and its transpose, without the values of the entries."""

    matrix: Layout
    transpose: Layout

    @property
    def T(self) -> Pattern:
        return Pattern(self.transpose, self.matrix)


class _Product(torch.autograd.Function):
    """The sparse product y_r = sum_c a_rc x_c; with _Sample it is closed under differentiation."""

    @staticmethod
    def forward(ctx, x: Tensor, values: Tensor | None, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, values)
        scale = None if values is None else values.detach().to(x.dtype)
        layout = pattern.matrix
        return F.embedding_bag(layout.columns, x.detach(), layout.starts, mode="sum", per_sample_weights=scale)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, values), transpose = ctx.saved_tensors, ctx.pattern.T
        flipped = None if values is None else values[transpose.matrix.order]
        gx = _Product.apply(g, flipped, transpose) if ctx.needs_input_grad[0] else None
        slope = _Sample.apply(g, x, ctx.pattern).to(values.dtype) if ctx.needs_input_grad[1] else None
        return gx, slope, None


class _Sample(torch.autograd.Function):
    """The scalar product y_r . x_c for each entry (r, c), in tiles that stay in a core's cache."""

    @staticmethod
    def forward(ctx, y: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(y, x)
        tile = max(512, 2**17 // x.shape[1])
        tiles = zip(pattern.matrix.rows.split(tile), pattern.matrix.columns.split(tile), strict=True)
        return torch.cat([y.index_select(0, r).mul_(x.index_select(0, c)).sum(1) for r, c in tiles])

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (y, x), transpose = ctx.saved_tensors, ctx.pattern.T
        gy = _Product.apply(x, g, ctx.pattern) if ctx.needs_input_grad[0] else None
        gx = _Product.apply(y, g[transpose.matrix.order], transpose) if ctx.needs_input_grad[1] else None
        return gy, gx, None


def sparse_product(pattern: Pattern, values: Tensor | None, x: Tensor) -> Tensor:
    """Multiply the sparse matrix of `values` (n,), or of ones, with x; differentiable any number of times by both."""
    return _Product.apply(x, values, pattern)
