"""Messages summed chunk by chunk: nothing as large as edges x width is kept; it is computed again when it is needed.

A chunk is all edges of some consecutive receivers. `Sums` keeps only its inputs and knows its derivative; `Tangents`
carries a tangent along, for the derivative of forces that are derivatives themselves (gnnscale/models/force_gradients.py).
Names are those of edge_messages in edges.py; g_y stands for dL/dy and t_y for the tangent of y.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gnnscale.atoms.graph import AtomGraphs

through_silu = torch.ops.aten.silu_backward  # (g, x) -> g silu'(x)


class Chunk(NamedTuple):
    """The n edges of k consecutive atoms, as sparse matrices in the form of embedding_bag; int32."""

    atoms: slice
    edges: slice
    pair: Tensor  # (2n,) rows of the table (2A, W): P_i and Q_j
    pair_starts: Tensor  # (n,)
    four: Tensor  # (4n,) the edges of each atom, once for each of four sums
    four_starts: Tensor  # (4k,)
    four_t: Tensor  # (4n,) the four sums that an edge goes into
    four_starts_t: Tensor  # (n,)
    by_sender: Tensor  # (n,) edges
    sender_starts: Tensor  # (u,)
    senders: Tensor  # (u,) rows of the table


def split_into_chunks(graphs: AtomGraphs, size: int) -> list[Chunk]:
    """Split a batch into chunks of whole atoms and at most `size` edges; once, for all layers and passes."""
    i, j, atoms = graphs.receivers, graphs.senders, len(graphs.numbers)
    starts = torch.searchsorted(i, torch.arange(atoms + 1, device=i.device)).tolist()
    firsts = [0]
    while (atom := max(bisect_right(starts, starts[firsts[-1]] + size) - 1, firsts[-1] + 1)) < atoms:
        firsts.append(atom)
    return [_chunk(i, j, a, b, starts) for a, b in zip(firsts, [*firsts[1:], atoms], strict=True)]


def _chunk(receivers: Tensor, senders: Tensor, first: int, last: int, starts: list[int]) -> Chunk:
    edges = slice(starts[first], starts[last])
    i, j, k, device = (receivers[edges] - first).int(), senders[edges].int(), last - first, receivers.device
    n, quarter = len(i), torch.arange(4, dtype=torch.int32, device=device)
    entry = torch.arange(n, dtype=torch.int32, device=device)
    begins = torch.tensor(starts[first:last], dtype=torch.int32, device=device) - starts[first]  # (k,)
    by_sender = torch.argsort(j, stable=True)
    rows, count = torch.unique_consecutive(j[by_sender], return_counts=True)
    return Chunk(
        slice(first, last),
        edges,
        torch.stack((2 * (i + first), 2 * j + 1), dim=1).view(-1),
        2 * entry,
        entry.repeat(4),
        (begins + n * quarter[:, None]).view(-1),
        (i[:, None] + k * quarter).view(-1),
        4 * entry,
        by_sender.int(),
        (count.cumsum(0) - count).int(),
        2 * rows + 1,
    )


class Weights(NamedTuple):
    """The weights of one layer, or their gradients."""

    radial: Tensor  # (W, R)
    second: Tensor | None  # (W, W); None where the second matrix acts on sums
    bias: Tensor | None  # (W,); there where `second` is
    mix: Tensor  # (K, W)

    def to(self, dtype: torch.dtype) -> Weights:
        return self._each(lambda w: w.to(dtype))

    def zeros(self) -> Weights:
        return self._each(accumulator)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Weights:
        second = None if self.second is None else change(self.second)
        bias = None if self.bias is None else change(self.bias)
        return Weights(change(self.radial), second, bias, change(self.mix))

    def second_matrix(self, x: Tensor) -> Tensor:
        """Return W_2 x + b_2."""
        assert self.second is not None and self.bias is not None
        return torch.addmm(self.bias, x, self.second.t())


def bag(rows: Tensor, x: Tensor, starts: Tensor, scale: Tensor | None = None) -> Tensor:
    """Sum the rows of x that each bag lists, each row times its scale."""
    return F.embedding_bag(rows, x, starts, mode="sum", per_sample_weights=scale)


def first_matrix(c: Chunk, table: Tensor | None, basis: Tensor, w: Weights) -> Tensor:
    """Return P_i + Q_j + W_r b (n, W), or its tangent from those of the table and the basis."""
    if table is None:
        return basis[c.edges] @ w.radial.t()
    return bag(c.pair, table, c.pair_starts).addmm_(basis[c.edges], w.radial.t())


def four_sums(c: Chunk, scale: Tensor, m: Tensor) -> Tensor:
    """Sum messages (n, W) with four scales, (4, E), over the edges of each atom: (4, k, W)."""
    return bag(c.four, m, c.four_starts, scale[:, c.edges].reshape(-1)).view(4, -1, m.shape[1])


def four_sums_t(c: Chunk, scale: Tensor, sums: Tensor) -> Tensor:
    """Apply the transpose of `four_sums`: from (4, k, W) to (n, W)."""
    return bag(c.four_t, sums.flatten(0, 1), c.four_starts_t, scale[:, c.edges].t().reshape(-1))


def unmix(c: Chunk, g_s: Tensor, g_v: Tensor, w: Weights) -> Tensor:
    """Return the derivative by the four sums (4, k, W) from those by s and v = mix of the last three."""
    return torch.cat((g_s[None, c.atoms], g_v[:, c.atoms] @ w.mix))


def add_pairs(c: Chunk, g_a: Tensor, g_table: Tensor) -> None:
    """Apply the transpose of the pairs in `first_matrix`; a receiver is in one chunk, a sender in many."""
    k, n = c.atoms.stop - c.atoms.start, len(c.by_sender)
    g_table.view(-1, 2, g_a.shape[1])[c.atoms, 0] = bag(c.four[:n], g_a, c.four_starts[:k]).to(g_table.dtype)
    g_table.index_add_(0, c.senders, bag(c.by_sender, g_a, c.sender_starts).to(g_table.dtype))


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right to the total."""
    if total.dtype == left.dtype:
        total.addmm_(left.t(), right)
    else:
        total.add_(left.t() @ right)


def accumulator(x: Tensor) -> Tensor:
    """Return zeros in float32 at least, as thousands of chunks are added up."""
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


def jet(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return SiLU, its slope and its curvature, from one exponential."""
    p = torch.sigmoid(x)
    y, q = x * p, 1 - p
    slope = torch.addcmul(p, y, q)
    return y, slope, (slope + p).addcmul_(p, y, value=-1).mul_(q)


def through_jet(g: Tensor, h: Tensor, t_x: Tensor, slope: Tensor, curve: Tensor) -> tuple[Tensor, Tensor]:
    """Turn derivatives by y = SiLU(x) and t_y = SiLU'(x) t_x into those by x and t_x, in place."""
    return g.mul_(slope).addcmul_(curve.mul_(t_x), h), h.mul_(slope)


class Sums(torch.autograd.Function):
    """(table (2A, W) with rows P_i, Q_i in turn; basis (E, R); scale (4, E); weights) -> s (A, W), v (3, A, K)."""

    @staticmethod
    def forward(ctx, parts: list[Chunk], table: Tensor, basis: Tensor, scale: Tensor, *weights):
        ctx.parts = parts
        ctx.save_for_backward(table, basis, scale, *weights)
        w, basis, scale = Weights(*weights).to(table.dtype), basis.to(table.dtype), scale.to(table.dtype)
        s = table.new_empty(len(table) // 2, table.shape[1])
        v = table.new_empty(3, len(s), len(w.mix))
        for c in parts:
            m = F.silu(first_matrix(c, table, basis, w), inplace=True)
            if w.second is not None:
                m = F.silu(w.second_matrix(m), inplace=True)
            sums = four_sums(c, scale, m)
            s[c.atoms] = sums[0]
            v[:, c.atoms] = sums[1:] @ w.mix.t()
        return s, v

    @staticmethod
    @once_differentiable
    def backward(ctx, g_s: Tensor, g_v: Tensor):
        table, basis, scale, *weights = ctx.saved_tensors
        w, dtype = Weights(*weights).to(table.dtype), table.dtype
        b, f = basis.to(dtype), scale.to(dtype)
        g_table = accumulator(table)
        geometry, learning = any(ctx.needs_input_grad[2:4]), any(ctx.needs_input_grad[4:])
        g_basis, g_scale = (torch.empty_like(basis), torch.empty_like(scale)) if geometry else (None, None)
        g = w.zeros() if learning else None
        for c in ctx.parts:
            a = first_matrix(c, table, b, w)
            x = F.silu(a)
            y = a if w.second is None else w.second_matrix(x)  # m = SiLU(y)
            g_sums = unmix(c, g_s, g_v, w)
            if g_scale is not None or g is not None:
                m = x if w.second is None else F.silu(y)
            if g_scale is not None:
                g_scale[:, c.edges] = dots(c, g_sums, m).to(scale.dtype)
            if g is not None:
                add_product(g.mix, g_v[:, c.atoms].flatten(0, 1), four_sums(c, f, m)[1:].flatten(0, 1))
            g_a = through_silu(four_sums_t(c, f, g_sums), y)
            if w.second is not None:
                if g is not None:
                    assert g.second is not None and g.bias is not None
                    add_product(g.second, g_a, x)
                    g.bias.add_(g_a.sum(0))
                g_a = through_silu(g_a @ w.second, a)
            if g_basis is not None:
                g_basis[c.edges] = (g_a @ w.radial).to(basis.dtype)
            if g is not None:
                add_product(g.radial, g_a, b[c.edges])
            add_pairs(c, g_a, g_table)
        return None, g_table.to(dtype), g_basis, g_scale, *cast_like(weights, g)


def dots(c: Chunk, sums: Tensor, m: Tensor) -> Tensor:
    """Return, for each edge, the products of m with the four sums of its receiver, (4, n)."""
    i = c.four_t[::4]
    return torch.stack([part.index_select(0, i).mul_(m).sum(1) for part in sums])


def cast_like(weights: list[Tensor | None], g: Weights | None) -> tuple[Tensor | None, ...]:
    """Return the gradients in the precision of the weights."""
    if g is None:
        return (None,) * len(weights)
    pairs = zip(g, weights, strict=True)
    return tuple(None if total is None or w is None else total.to(w.dtype) for total, w in pairs)


class Tangents(torch.autograd.Function):
    """Sums, and their tangents s' and v' for those of the table, basis and scale. Not differentiable by geometry."""

    @staticmethod
    def forward(ctx, parts, table, t_table, basis, t_basis, scale, t_scale, *weights):
        ctx.parts = parts
        ctx.save_for_backward(table, t_table, basis, t_basis, scale, t_scale, *weights)
        w = Weights(*weights).to(table.dtype)
        basis, t_basis, scale, t_scale = (x.to(table.dtype) for x in (basis, t_basis, scale, t_scale))
        s, t_s = table.new_empty(2, len(table) // 2, table.shape[1])
        v, t_v = table.new_empty(2, 3, len(s), len(w.mix))
        for c in parts:
            a = first_matrix(c, table, basis, w)
            t_m = through_silu(first_matrix(c, t_table, t_basis, w), a)
            m = F.silu(a, inplace=True)
            if w.second is not None:
                q = w.second_matrix(m)
                t_m = through_silu(t_m @ w.second.t(), q)
                m = F.silu(q, inplace=True)
            sums = four_sums(c, scale, m)
            t_sums = four_sums(c, scale, t_m).add_(four_sums(c, t_scale, m))
            s[c.atoms], t_s[c.atoms] = sums[0], t_sums[0]
            v[:, c.atoms], t_v[:, c.atoms] = sums[1:] @ w.mix.t(), t_sums[1:] @ w.mix.t()
        return s, v, t_s, t_v

    @staticmethod
    @once_differentiable
    def backward(ctx, g_s, g_v, h_s, h_v):
        """Return the gradients; h_y stands for the derivative by the tangent of y."""
        table, t_table, basis, t_basis, scale, t_scale, *weights = ctx.saved_tensors
        w, dtype = Weights(*weights).to(table.dtype), table.dtype
        b, t_b, f, t_f = (x.to(dtype) for x in (basis, t_basis, scale, t_scale))
        g, g_table = w.zeros(), accumulator(table)
        h_table = None if t_table is None else accumulator(table)
        for c in ctx.parts:
            a, t_a = first_matrix(c, table, b, w), first_matrix(c, t_table, t_b, w)
            x, *a_slopes = jet(a)
            y, t_y = a, t_a
            if w.second is not None:
                t_x = t_a * a_slopes[0]
                y, t_y = w.second_matrix(x), t_x @ w.second.t()
            m, *y_slopes = jet(y)
            g_sums, h_sums = unmix(c, g_s, g_v, w), unmix(c, h_s, h_v, w)
            t_sums = four_sums(c, f, t_y * y_slopes[0]).add_(four_sums(c, t_f, m))
            add_product(g.mix, g_v[:, c.atoms].flatten(0, 1), four_sums(c, f, m)[1:].flatten(0, 1))
            add_product(g.mix, h_v[:, c.atoms].flatten(0, 1), t_sums[1:].flatten(0, 1))
            g_m = four_sums_t(c, f, g_sums).add_(four_sums_t(c, t_f, h_sums))
            g_a, h_a = through_jet(g_m, four_sums_t(c, f, h_sums), t_y, *y_slopes)
            if w.second is not None:
                add_product(g.second, g_a, x)
                add_product(g.second, h_a, t_x)
                g.bias.add_(g_a.sum(0))
                g_a, h_a = through_jet(g_a @ w.second, h_a @ w.second, t_a, *a_slopes)
            add_product(g.radial, g_a, b[c.edges])
            add_product(g.radial, h_a, t_b[c.edges])
            add_pairs(c, g_a, g_table)
            if h_table is not None:
                add_pairs(c, h_a, h_table)
        h_table = None if h_table is None else h_table.to(dtype)
        return None, g_table.to(dtype), h_table, None, None, None, None, *cast_like(weights, g)
