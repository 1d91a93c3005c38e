"""Triton kernels that make messages and sum them in one pass; gnnscale/models/kernels/fused_sums.py launches them.

Form `deferred`: nothing as large as edges x width is stored at all. A program takes one receiver and some channels; from
the rows P_i and Q_j (which lie in the L2 cache) it makes pre-activation, SiLU and weighted sums in registers, so that
memory sees each Q_j once per edge and no E x W array, where one kernel per operation writes and reads about seven.

Form `edge`: W_2 stays a cuBLAS product per chunk, between two fused kernels: x = SiLU(P_i + Q_j + W_r b) is written once,
q = W_2 x + b_2 read once by the kernel that does SiLU, weights and sums. A kernel with W_2 inside would have to make x
anew for each block of output channels: with 128 of them, about 30 operations outside the tensor cores for 256 within
these, which are over ten times as fast, so it would wait for x. What it would save, a write and a read of x and of q in
16 bits, is 8 bytes for 2 W operations: no more than the product itself from W = 512 on, and less in a chunk within L2.

All sums are in float32 and in a fixed order, those over a sender's edges too: instead of atomics, each g_a is made again
in the senders' order. A training that goes on thus ends bit for bit where an undisturbed one does.
Names are those of chunked.py; the only file that imports triton. Checked by Triton's interpreter and its compilers for
sm_90 and gfx90a; not yet timed on a GPU, which is what tests/benchmarks/bench_fused.py is for.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import triton
import triton.language as tl


def own_cache_folder() -> str:
    """Return a folder on this node for its user alone: Triton would keep kernels in the home, and runs what it finds there."""
    path = Path(tempfile.gettempdir()) / f"gnnscale-triton-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    state = path.lstat()
    is_private = state.st_uid == os.getuid() and not state.st_mode & 0o077 and not path.is_symlink()
    return str(path) if is_private else tempfile.mkdtemp(prefix="gnnscale-triton-")


os.environ.setdefault("TRITON_CACHE_DIR", own_cache_folder())


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _rows(x, rows, c, on, inside, W):
    return tl.load(x + rows[:, None] * W + c, mask=on[:, None] & inside[None, :], other=0.0).to(tl.float32)


@triton.jit
def _row(x, row, c, inside, W):
    return tl.load(x + row * W + c, mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _radial(a, basis, radial_t, e, c, on, inside, W, R: tl.constexpr):
    """Return a + W_r b for the edges `e` and the channels `c`; radial_t is (R, W)."""
    for r in tl.static_range(R):
        b = tl.load(basis + e * R + r, mask=on, other=0.0).to(tl.float32)
        a += b[:, None] * _row(radial_t, r, c, inside, W)
    return a


@triton.jit
def _scale(scale, k, E, e, on):
    return tl.load(scale + k * E + e, mask=on, other=0.0).to(tl.float32)[:, None]


@triton.jit
def first_kernel(table, pair, basis, radial_t, x, n, W, R: tl.constexpr, BE: tl.constexpr, BW: tl.constexpr):
    """Write x = SiLU(P_i + Q_j + W_r b), (n, W)."""
    e = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    c = tl.program_id(1) * BW + tl.arange(0, BW)
    on, inside = e < n, c < W
    i = tl.load(pair + 2 * e, mask=on, other=0).to(tl.int64)
    j = tl.load(pair + 2 * e + 1, mask=on, other=0).to(tl.int64)
    a = _rows(table, i, c, on, inside, W) + _rows(table, j, c, on, inside, W)
    a = _radial(a, basis, radial_t, e, c, on, inside, W, R)
    tl.store(x + e[:, None] * W + c, (a * _sigmoid(a)).to(x.dtype.element_ty), mask=on[:, None] & inside[None, :])


@triton.jit
def _inner(table, y, pair, basis, radial_t, p, e, c, on, inside, W, R: tl.constexpr, MADE: tl.constexpr):
    """Return the argument of the last SiLU for edges `e` of one receiver with row `p` of P: y if MADE, else made here."""
    if MADE:
        a = _rows(y, e, c, on, inside, W)
    else:
        j = tl.load(pair + 2 * e + 1, mask=on, other=0).to(tl.int64)
        a = _radial(p + _rows(table, j, c, on, inside, W), basis, radial_t, e, c, on, inside, W, R)
    return a


@triton.jit
def sums_kernel(
    table,
    y,
    pair,
    basis,
    radial_t,
    scale,
    starts,
    sums,
    first,
    k,
    E,
    W,
    R: tl.constexpr,
    MADE: tl.constexpr,
    BE: tl.constexpr,
    BW: tl.constexpr,
):
    """Write (4, k, W) sums of w m over the edges of a receiver, m = SiLU(y); y is P_i + Q_j + W_r b unless MADE."""
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BW + tl.arange(0, BW)
    inside = c < W
    p = _row(table, 2 * (first + i), c, inside, W)
    s = tl.zeros((BE, BW), tl.float32)
    v1, v2, v3 = s, s, s
    end = tl.load(starts + i + 1)
    for begin in range(tl.load(starts + i), end, BE):
        e = begin + tl.arange(0, BE).to(tl.int64)
        on = e < end
        a = _inner(table, y, pair, basis, radial_t, p, e, c, on, inside, W, R, MADE)
        m = a * _sigmoid(a)
        s += _scale(scale, 0, E, e, on) * m
        v1 += _scale(scale, 1, E, e, on) * m
        v2 += _scale(scale, 2, E, e, on) * m
        v3 += _scale(scale, 3, E, e, on) * m
    place = sums + i * W + c
    kind = sums.dtype.element_ty
    tl.store(place, tl.sum(s, 0).to(kind), mask=inside)
    tl.store(place + k * W, tl.sum(v1, 0).to(kind), mask=inside)
    tl.store(place + 2 * k * W, tl.sum(v2, 0).to(kind), mask=inside)
    tl.store(place + 3 * k * W, tl.sum(v3, 0).to(kind), mask=inside)


@triton.jit
def receivers_kernel(
    table,
    y,
    pair,
    basis,
    radial_t,
    scale,
    g_sums,
    starts,
    g_y,
    totals,
    m_sums,
    g_radial_parts,
    first,
    k,
    E,
    W,
    R: tl.constexpr,
    MADE: tl.constexpr,
    GIVEN: tl.constexpr,
    KEEP: tl.constexpr,
    SUMS: tl.constexpr,
    RADIAL: tl.constexpr,
    PRECISION: tl.constexpr,
    RP: tl.constexpr,
    AP: tl.constexpr,
    BE: tl.constexpr,
    BW: tl.constexpr,
):
    """Go back through SiLU for all edges of some receivers.

    The derivative by m = SiLU(y) follows from that by the four sums, or is GIVEN in g_y. That by y is summed over a
    receiver's edges into totals (k, W); if KEEP it is left in g_y, which may be y itself; if RADIAL, its product with b
    is left in g_radial_parts (programs, R, W). If SUMS, the last three sums of w m are made, too.
    """
    block = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BW + tl.arange(0, BW)
    inside = c < W
    rp = tl.arange(0, RP)
    radial = tl.zeros((RP, BW), tl.float32)
    for i in range(block * AP, tl.minimum(block * AP + AP, k)):
        p = _row(table, 2 * (first + i), c, inside, W)
        if not GIVEN:
            g0, g1 = _row(g_sums, i, c, inside, W), _row(g_sums, k + i, c, inside, W)
            g2, g3 = _row(g_sums, 2 * k + i, c, inside, W), _row(g_sums, 3 * k + i, c, inside, W)
        total = tl.zeros((BE, BW), tl.float32)
        v1, v2, v3 = total, total, total
        end = tl.load(starts + i + 1)
        for begin in range(tl.load(starts + i), end, BE):
            e = begin + tl.arange(0, BE).to(tl.int64)
            on = e < end
            a = _inner(table, y, pair, basis, radial_t, p, e, c, on, inside, W, R, MADE)
            sigmoid = _sigmoid(a)
            if GIVEN:
                g = _rows(g_y, e, c, on, inside, W)
            else:
                w1, w2, w3 = _scale(scale, 1, E, e, on), _scale(scale, 2, E, e, on), _scale(scale, 3, E, e, on)
                g = _scale(scale, 0, E, e, on) * g0 + w1 * g1 + w2 * g2 + w3 * g3
                if SUMS:
                    m = a * sigmoid
                    v1 += w1 * m
                    v2 += w2 * m
                    v3 += w3 * m
            g *= sigmoid * (1 + a * (1 - sigmoid))
            total += g
            if KEEP:
                whole = on[:, None] & inside[None, :]
                tl.store(g_y + e[:, None] * W + c, g.to(g_y.dtype.element_ty), mask=whole)
            if RADIAL:
                b = tl.load(basis + e * R + rp[:, None], mask=on & (rp[:, None] < R), other=0.0)  # (RP, BE)
                radial = tl.dot(b.to(tl.float32), g, radial, input_precision=PRECISION)
        tl.store(totals + i * W + c, tl.sum(total, 0).to(totals.dtype.element_ty), mask=inside)
        if SUMS:
            place = m_sums + i * W + c
            kind = m_sums.dtype.element_ty
            tl.store(place, tl.sum(v1, 0).to(kind), mask=inside)
            tl.store(place + k * W, tl.sum(v2, 0).to(kind), mask=inside)
            tl.store(place + 2 * k * W, tl.sum(v3, 0).to(kind), mask=inside)
    if RADIAL:
        rows = block * R + rp
        tl.store(g_radial_parts + rows[:, None] * W + c, radial, mask=(rp < R)[:, None] & inside[None, :])


@triton.jit
def senders_kernel(
    table,
    g_a,
    pair,
    basis,
    radial_t,
    scale,
    g_sums,
    by_sender,
    starts,
    senders,
    g_table,
    first,
    k,
    E,
    n,
    u,
    W,
    R: tl.constexpr,
    MADE: tl.constexpr,
    BE: tl.constexpr,
    BW: tl.constexpr,
):
    """Add the derivative by Q_j to its row of g_table: sums of g_a, which was MADE or is here, over a sender's edges."""
    place = tl.program_id(0)
    c = tl.program_id(1) * BW + tl.arange(0, BW)
    inside = c < W
    row = tl.load(senders + place).to(tl.int64)
    q = _row(table, row, c, inside, W)
    total = tl.zeros((BE, BW), tl.float32)
    end = tl.load(starts + place + 1, mask=place + 1 < u, other=n)
    for begin in range(tl.load(starts + place), end, BE):
        t = begin + tl.arange(0, BE)
        on = t < end
        e = tl.load(by_sender + t, mask=on, other=0).to(tl.int64)
        if MADE:
            total += _rows(g_a, e, c, on, inside, W)
        else:
            p_row = tl.load(pair + 2 * e, mask=on, other=0).to(tl.int64)
            i = p_row // 2 - first
            a = _radial(q + _rows(table, p_row, c, on, inside, W), basis, radial_t, e, c, on, inside, W, R)
            sigmoid = _sigmoid(a)
            g = _scale(scale, 0, E, e, on) * _rows(g_sums, i, c, on, inside, W)
            g += _scale(scale, 1, E, e, on) * _rows(g_sums, k + i, c, on, inside, W)
            g += _scale(scale, 2, E, e, on) * _rows(g_sums, 2 * k + i, c, on, inside, W)
            g += _scale(scale, 3, E, e, on) * _rows(g_sums, 3 * k + i, c, on, inside, W)
            total += g * sigmoid * (1 + a * (1 - sigmoid))
    place = g_table + row * W + c
    tl.store(place, tl.load(place, mask=inside) + tl.sum(total, 0), mask=inside)


@triton.jit
def slopes_kernel(
    table,
    y,
    pair,
    basis,
    radial_t,
    scale,
    g_sums,
    starts,
    g_scale,
    g_basis,
    first,
    k,
    E,
    W,
    R: tl.constexpr,
    MADE: tl.constexpr,
    PRECISION: tl.constexpr,
    RP: tl.constexpr,
    BE: tl.constexpr,
    BW: tl.constexpr,
):
    """Write the derivatives by the scale (4, E) and, unless y was MADE, by the basis (E, R): sums over all channels."""
    i = tl.program_id(0).to(tl.int64)
    rp = tl.arange(0, RP)
    end = tl.load(starts + i + 1)
    for begin in range(tl.load(starts + i), end, BE):
        e = begin + tl.arange(0, BE).to(tl.int64)
        on = e < end
        w0, w1 = _scale(scale, 0, E, e, on), _scale(scale, 1, E, e, on)
        w2, w3 = _scale(scale, 2, E, e, on), _scale(scale, 3, E, e, on)
        d0 = tl.zeros((BE,), tl.float32)
        d1, d2, d3 = d0, d0, d0
        slope = tl.zeros((BE, RP), tl.float32)
        for begin_c in range(0, W, BW):
            c = begin_c + tl.arange(0, BW)
            inside = c < W
            g0, g1 = _row(g_sums, i, c, inside, W), _row(g_sums, k + i, c, inside, W)
            g2, g3 = _row(g_sums, 2 * k + i, c, inside, W), _row(g_sums, 3 * k + i, c, inside, W)
            if MADE:
                a = _rows(y, e, c, on, inside, W)
            else:
                j = tl.load(pair + 2 * e + 1, mask=on, other=0).to(tl.int64)
                a = _row(table, 2 * (first + i), c, inside, W) + _rows(table, j, c, on, inside, W)
                a = _radial(a, basis, radial_t, e, c, on, inside, W, R)
            sigmoid = _sigmoid(a)
            m = a * sigmoid
            d0 += tl.sum(m * g0, 1)
            d1 += tl.sum(m * g1, 1)
            d2 += tl.sum(m * g2, 1)
            d3 += tl.sum(m * g3, 1)
            if not MADE:
                g_a = (w0 * g0 + w1 * g1 + w2 * g2 + w3 * g3) * sigmoid * (1 + a * (1 - sigmoid))
                weight = tl.load(radial_t + rp * W + c[:, None], mask=(rp < R) & inside[:, None], other=0.0)  # (BW, RP)
                slope = tl.dot(g_a, weight.to(tl.float32), slope, input_precision=PRECISION)
        tl.store(g_scale + e, d0, mask=on)
        tl.store(g_scale + E + e, d1, mask=on)
        tl.store(g_scale + 2 * E + e, d2, mask=on)
        tl.store(g_scale + 3 * E + e, d3, mask=on)
        if not MADE:
            tl.store(g_basis + e[:, None] * R + rp, slope, mask=on[:, None] & (rp < R))
