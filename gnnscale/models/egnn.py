"""EGNN (Satorras et al., arXiv:2102.09844) made exactly E(3)-equivariant and trainable at any width and depth.

Differences from the paper: atoms do not move, vectors V_i are carried instead, so nothing depends on the origin;
a radial basis and a smooth cutoff in place of d^2; pre-norm residual layers with a learnable step.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnscale.architectures import ELEMENTS, EGNNConfig
from gnnscale.graph import AtomGraphs
from gnnscale.models.blocks import Layout, Pattern, bessel, envelope, linear, product, rms_norm


class Edges(NamedTuple):
    """What all layers share: the graph as sparse matrices, and its geometry."""

    basis: Tensor  # (E, R) radial functions of r_ij
    pair: Pattern  # (E, 2A): the row of an edge adds row i of P and row j of Q
    moment: Pattern  # (4A, E): four sums over the edges of each atom
    weights: Tensor  # (4E,) of them: w_ij and the components of w_ij u_ij; w is the envelope / sqrt(average degree)


def embed_edges(graphs: AtomGraphs, vectors: Tensor, cutoff: float, radial: int, scale: Tensor) -> Edges:
    r = torch.linalg.vector_norm(vectors, dim=1)  # (E,) Angstrom
    w = envelope(r, cutoff) * scale
    weights = torch.cat((w[None], vectors.t() * (w / r))).view(-1)
    return Edges(bessel(r[:, None], cutoff, radial), *patterns(graphs), weights)


def patterns(graphs: AtomGraphs) -> tuple[Pattern, Pattern]:
    """Of the sparse matrices `pair` and `moment`."""
    i, j = graphs.receivers, graphs.senders
    atoms, count = len(graphs.numbers), len(i)
    entry, atom = torch.arange(4 * count, device=i.device), torch.arange(4 * atoms, device=i.device)
    starts = torch.searchsorted(i, atom[:atoms])  # (A,) the first edge of each atom
    by_sender = torch.argsort(j, stable=True)  # (E,)
    sender_starts = torch.searchsorted(j[by_sender], atom[:atoms])

    rows, columns = entry[: 2 * count] // 2, torch.stack((i, j + atoms), dim=1).view(-1)  # (2E,)
    order = torch.cat((2 * entry[:count], 2 * by_sender + 1))  # the receivers' entries, then the senders'
    pair = Layout(rows, columns, entry[: 2 * count : 2].contiguous(), order)  # its `order` is unused: all values are 1
    pair_t = Layout(columns[order], rows[order], torch.cat((starts, sender_starts + count)), order)

    rows, columns = (i + atoms * atom[:4, None]).view(-1), entry[:count].repeat(4)  # (4E,)
    order = entry.view(4, count).t().reshape(-1)  # four entries of each edge together
    moment = Layout(rows, columns, (starts + count * atom[:4, None]).view(-1), entry.view(count, 4).t().reshape(-1))
    moment_t = Layout(columns[order], rows[order], entry[::4].contiguous(), order)
    return Pattern(pair, pair_t), Pattern(moment, moment_t)


def edge_messages(table: Tensor, radial: Tensor, second: nn.Linear | None, edges: Edges) -> Tensor:
    """sum_j w_ij (1, u_ij) m_ij: a scalar and a vector for each channel, with w_ij the envelope / sqrt(degree).

    m_ij = SiLU(P_i + Q_j + W_r b(r_ij)), then SiLU(W_2 m + b_2) if there is a `second`: equations 3 and 5 of the paper
    with the first matrix applied before the gather. All that is as large as edges x width is born and dies here.
    """
    pairs = product(edges.pair, None, table)  # (E, W) from (2A, W), P above Q
    m = F.silu(torch.addmm(pairs, edges.basis, radial.t()))
    if second is not None:
        m = F.silu(second(m))
    return product(edges.moment, edges.weights, m).view(4, -1, m.shape[1])  # (4, A, W)


class EGNNLayer(nn.Module):
    """h_i += step * phi(x_i, sum_j m_ij, |V_i|) with x = norm(h), and V_i += sum_j u_ij m_ij W_v."""

    def __init__(self, config: EGNNConfig):
        super().__init__()
        width, channels = config.width, config.channels
        self.deferred = config.form == "deferred"  # W_2 acts on sums over neighbours: no matrix product per edge
        self.project = linear(width, 2 * width)  # rows: P_i, Q_j
        self.radial = nn.Parameter(torch.randn(width, config.radial) / math.sqrt(config.radial))
        self.second = linear(width, width, bias=True)
        self.mix = linear(width, channels)  # the gates of the vectors, linear in m
        self.hidden = linear(2 * width + channels, width, bias=True)
        self.update = linear(width, width)
        self.step = nn.Parameter(torch.full((width,), 1 / math.sqrt(config.depth)))

    def forward(self, h: Tensor, vectors: Tensor | None, edges: Edges) -> tuple[Tensor, Tensor]:
        x = rms_norm(h)  # (A, W)
        atoms, width = h.shape
        table = self.project(x).view(atoms, 2, width).transpose(0, 1).reshape(2 * atoms, width)
        sums = edge_messages(table, self.radial, None if self.deferred else self.second, edges)  # (4, A, W)
        s = F.silu(self.second(sums[0])) if self.deferred else sums[0]
        v = self.mix(sums[1:])  # (3, A, K)
        vectors = v if vectors is None else vectors + v
        lengths = torch.sqrt(vectors.square().sum(0) + 1)  # (A, K), smooth at 0
        return h + self.step * self.update(F.silu(self.hidden(torch.cat((x, s, lengths), dim=1)))), vectors


class EGNN(nn.Module):
    """Backbone: (graphs, edge vectors) -> energy of each atom (A,) and its force (A, 3), or None, in unit scales."""

    def __init__(self, config: EGNNConfig, sources: int, average_degree: float):
        super().__init__()
        self.cutoff, self.radial, self.direct = config.cutoff, config.radial, config.forces == "direct"
        self.element = nn.Embedding(ELEMENTS, config.width)
        self.source = nn.Embedding(sources, config.width)
        nn.init.zeros_(self.source.weight)  # all sources begin as one
        self.layers = nn.ModuleList(EGNNLayer(config) for _ in range(config.depth))
        self.hidden = linear(config.width, config.width, bias=True)
        self.readout = linear(config.width, 1 + config.channels * self.direct, zero=True)
        self.register_buffer("scale", torch.tensor(1 / math.sqrt(max(average_degree, 1.0))))

    def forward(self, graphs: AtomGraphs, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        edges = embed_edges(graphs, vectors, self.cutoff, self.radial, self.scale)
        h = self.element(graphs.numbers) + self.source(graphs.source[graphs.structure])  # (A, W)
        v = None
        for layer in self.layers:
            h, v = layer(h, v, edges)
        out = self.readout(F.silu(self.hidden(rms_norm(h))))  # (A, 1 + K): energy, gates of the vectors
        return out[:, 0], (v * out[:, 1:]).sum(2).t() if self.direct else None
