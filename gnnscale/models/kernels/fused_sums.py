"""Messages summed on a GPU by Triton kernels: the results of chunked.Sums with next to nothing of edges x width stored."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gnnscale.models.kernels.chunked import Chunk, Weights, accumulator, add_product, cast_like, unmix
from gnnscale.models.kernels.triton import first_kernel, receivers_kernel, senders_kernel, slopes_kernel, sums_kernel

EDGES_AT_ONCE = 16  # of one receiver or sender
EDGES_PER_PROGRAM = 32  # where no receiver is needed
ATOMS_PER_PROGRAM = 8  # where sums over atoms are made


def ceil_divide(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def choose_block_sizes(radial: int, width: int) -> dict[str, int]:
    """Return how many channels are taken at a time, and radial functions rounded up to what a matrix product takes.

    With 64 channels, ptxas for sm_90 gives no kernel more registers than there are, but for 8 bytes in one; with 128,
    the largest two spill.
    """
    return {"BW": min(64, max(16, next_power_of_2(width))), "RP": max(16, next_power_of_2(radial))}


class Inputs(NamedTuple):
    """The arguments of the kernels for one chunk, in the precision of the table; E is the stride of `scale`."""

    table: Tensor  # (2A, W)
    pair: Tensor  # (2n,)
    basis: Tensor  # (n, R)
    radial_t: Tensor  # (R, W)
    scale: Tensor  # (4, n) of (4, E)
    starts: Tensor  # (k + 1,)
    first: int
    k: int
    n: int

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return self.first, self.k, self.scale.stride(0), self.table.shape[1]

    @property
    def tiles(self) -> int:
        return ceil_divide(self.table.shape[1], choose_block_sizes(*self.radial_t.shape)["BW"])

    @property
    def options(self) -> dict[str, int | bool]:
        sizes = {"R": len(self.radial_t), "BE": EDGES_AT_ONCE, "BW": choose_block_sizes(*self.radial_t.shape)["BW"]}
        return sizes | {"enable_fp_fusion": True}  # the default differs between versions of Triton

    @property
    def products(self) -> dict[str, int | str]:
        """Numbers of 16 bits are exact in tf32; AMD has no tf32 before its third generation."""
        exact = self.table.dtype == torch.float32 or torch.version.hip is not None
        return {"RP": choose_block_sizes(*self.radial_t.shape)["RP"], "PRECISION": "ieee" if exact else "tf32"}


def gather_inputs(c: Chunk, table: Tensor, basis: Tensor, scale: Tensor, radial_t: Tensor) -> Inputs:
    """Return the arguments for one chunk; its `four_starts` begins with the first edge of each atom, then n."""
    k = c.atoms.stop - c.atoms.start
    n = c.edges.stop - c.edges.start
    return Inputs(table, c.pair, basis[c.edges], radial_t, scale[:, c.edges], c.four_starts, c.atoms.start, k, n)


def first_messages(x: Inputs) -> Tensor:
    """Return SiLU(P_i + Q_j + W_r b), (n, W)."""
    out = x.table.new_empty(x.n, x.table.shape[1])
    grid, options = (ceil_divide(x.n, EDGES_PER_PROGRAM), x.tiles), x.options | {"BE": EDGES_PER_PROGRAM}
    first_kernel[grid](x.table, x.pair, x.basis, x.radial_t, out, x.n, out.shape[1], **options)
    return out


def four_sums(x: Inputs, y: Tensor | None) -> Tensor:
    """Return the four weighted sums of messages, (4, k, W); y is (n, W) where there is a second matrix."""
    sums = x.table.new_empty(4, x.k, x.table.shape[1])
    made = x.table if y is None else y
    sums_kernel[x.k, x.tiles](
        x.table, made, x.pair, x.basis, x.radial_t, x.scale, x.starts, sums, *x.counts, MADE=y is not None, **x.options
    )
    return sums


class Back(NamedTuple):
    """Sums made on the way back through SiLU."""

    totals: Tensor  # (k, W) of the derivative by y, over the edges of a receiver
    m_sums: Tensor | None  # (3, k, W)
    radial: Tensor | None  # (R, W)


def receivers_back(x: Inputs, g_sums: Tensor | None, y: Tensor | None, g_y: Tensor | None, learning: bool) -> Back:
    """Go back through SiLU, into g_y (n, W) if given; without g_sums it holds the derivative by m."""
    width, programs = x.table.shape[1], ceil_divide(x.k, ATOMS_PER_PROGRAM)
    whole = g_y is None
    totals = x.table.new_empty(x.k, width, dtype=torch.float32)
    m_sums = torch.empty_like(g_sums[1:]) if g_sums is not None and learning else None
    parts = totals.new_empty(programs, len(x.radial_t), width) if learning and whole else None
    receivers_kernel[programs, x.tiles](
        x.table,
        x.table if y is None else y,
        x.pair,
        x.basis,
        x.radial_t,
        x.scale,
        x.table if g_sums is None else g_sums,
        x.starts,
        totals if whole else g_y,
        totals,
        totals if m_sums is None else m_sums,
        totals if parts is None else parts,
        *x.counts,
        MADE=y is not None,
        GIVEN=g_sums is None,
        KEEP=not whole,
        SUMS=m_sums is not None,
        RADIAL=parts is not None,
        AP=ATOMS_PER_PROGRAM,
        **x.options,
        **x.products,
    )
    return Back(totals, m_sums, None if parts is None else parts.sum(0))


def add_to_senders(x: Inputs, c: Chunk, g_sums: Tensor, g_a: Tensor | None, g_table: Tensor) -> None:
    """Add to the rows of senders. In a chunk each sender comes once, so no two programs add to a row."""
    senders_kernel[len(c.senders), x.tiles](
        x.table,
        x.table if g_a is None else g_a,
        x.pair,
        x.basis,
        x.radial_t,
        x.scale,
        g_sums,
        c.by_sender,
        c.sender_starts,
        c.senders,
        g_table,
        *x.counts[:3],
        x.n,
        len(c.senders),
        x.counts[3],
        MADE=g_a is not None,
        **x.options,
    )


def add_slopes(x: Inputs, g_sums: Tensor, y: Tensor | None, g_scale: Tensor, g_basis: Tensor) -> None:
    """Fill columns of g_scale (4, n) and, without a second matrix, rows of g_basis (n, R)."""
    assert g_scale.stride() == x.scale.stride()
    slopes_kernel[(x.k,)](
        x.table,
        x.table if y is None else y,
        x.pair,
        x.basis,
        x.radial_t,
        x.scale,
        g_sums,
        x.starts,
        g_scale,
        g_basis,
        *x.counts,
        MADE=y is not None,
        **x.options,
        **x.products,
    )


class FusedSums(torch.autograd.Function):
    """The same function as chunked.Sums, which names its arguments and results."""

    @staticmethod
    def forward(ctx, parts: list[Chunk], table: Tensor, basis: Tensor, scale: Tensor, *weights):
        ctx.parts = parts
        ctx.save_for_backward(table, basis, scale, *weights)
        table, b, f, w, radial_t = prepare(table, basis, scale, weights)
        s = table.new_empty(len(table) // 2, table.shape[1])
        v = table.new_empty(3, len(s), len(w.mix))
        for c in parts:
            x = gather_inputs(c, table, b, f, radial_t)
            y = None if w.second is None else F.linear(first_messages(x), w.second, w.bias)
            sums = four_sums(x, y)
            s[c.atoms] = sums[0]
            v[:, c.atoms] = sums[1:] @ w.mix.t()
        return s, v

    @staticmethod
    @once_differentiable
    def backward(ctx, g_s: Tensor, g_v: Tensor):
        table, basis, scale, *weights = ctx.saved_tensors
        table, b, f, w, radial_t = prepare(table, basis, scale, weights)
        geometry, learning = any(ctx.needs_input_grad[2:4]), any(ctx.needs_input_grad[4:])
        g_table = accumulator(table)
        g_basis, g_scale = (
            (torch.empty_like(basis), torch.empty_like(f, dtype=scale.dtype)) if geometry else (None, None)
        )
        g = w.zeros() if learning else None
        for c in ctx.parts:
            x, g_sums = gather_inputs(c, table, b, f, radial_t), unmix(c, g_s, g_v, w)
            first = y = g_a = None
            if w.second is not None:
                first = first_messages(x)
                y = F.linear(first, w.second, w.bias)
            if g_scale is not None and g_basis is not None:
                add_slopes(x, g_sums, y, g_scale[:, c.edges], g_basis[c.edges])
            back = receivers_back(x, g_sums, y, y, learning)
            if g is not None:
                assert back.m_sums is not None
                add_product(g.mix, g_v[:, c.atoms].flatten(0, 1), back.m_sums.flatten(0, 1))
            if w.second is not None:  # `y` is now the derivative by what was in it
                assert first is not None and y is not None
                if g is not None:
                    assert g.second is not None and g.bias is not None
                    add_product(g.second, y, first)
                    g.bias.add_(back.totals.sum(0))
                g_a = y @ w.second
                back = receivers_back(x, None, None, g_a, learning)
                if g_basis is not None:
                    g_basis[c.edges] = (g_a @ w.radial).to(basis.dtype)
                if g is not None:
                    add_product(g.radial, g_a, x.basis)
            elif g is not None:
                assert back.radial is not None
                g.radial.add_(back.radial.t())
            g_table.view(-1, 2, table.shape[1])[c.atoms, 0] = back.totals
            add_to_senders(x, c, g_sums, g_a, g_table)
        return None, g_table.to(table.dtype), g_basis, g_scale, *cast_like(weights, g)


def prepare(table: Tensor, basis: Tensor, scale: Tensor, weights) -> tuple[Tensor, Tensor, Tensor, Weights, Tensor]:
    """Return all in the precision of the table and contiguous, and the transposed radial weights, (R, W)."""
    w = Weights(*weights).to(table.dtype)
    basis, scale = basis.to(table.dtype).contiguous(), scale.to(table.dtype).contiguous()
    return table.contiguous(), basis, scale, w, w.radial.t().contiguous()
