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

from gnnscale.graph import AtomGraphs
from gnnscale.models.blocks import bessel, envelope, linear, pair_sum, rms_norm, weighted_sum
from gnnscale.specs import ELEMENTS, EGNNConfig


class Edges(NamedTuple):
    """What all layers share: the graph as the kernels want it, and its geometry."""

    receivers: Tensor  # (E,) i, ascending
    starts: Tensor  # (A,) the first edge of each atom
    pairs: Tensor  # (E, 2) rows of P_i and Q_j in the table (2A, W) of both
    basis: Tensor  # (E, R) radial functions of r_ij
    weights: Tensor  # (E,) envelope / sqrt(average degree)
    directions: Tensor  # (E, 3, 1) unit vector from i to j, times the weight


def embed_edges(graphs: AtomGraphs, vectors: Tensor, cutoff: float, radial: int, scale: Tensor) -> Edges:
    i, j = graphs.receivers, graphs.senders
    starts = torch.searchsorted(i, torch.arange(len(graphs.numbers), device=i.device))
    r = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)  # (E, 1) Angstrom
    weights = envelope(r, cutoff) * scale
    directions = vectors * (weights / r)
    pairs = torch.stack((2 * i, 2 * j + 1), dim=1)
    return Edges(i, starts, pairs, bessel(r, cutoff, radial), weights[:, 0], directions[:, :, None])


def edge_messages(
    table: Tensor, radial: Tensor, second: nn.Linear | None, edges: Edges, channels: int
) -> tuple[Tensor, Tensor]:
    """sum_j w_ij m_ij (A, W) and the vectors sum_j w_ij u_ij m_ij (A, 3, K), the latter of the first K channels of m.

    m_ij = SiLU(P_i + Q_j + W_r b(r_ij)), then SiLU(W_2 m + b_2) if there is a `second`: equations 3 and 5 of the paper
    with the first matrix applied before the gather. All that is as large as edges x width is born and dies here.
    """
    m = F.silu(torch.addmm(pair_sum(table, edges.pairs), edges.basis, radial.t()))  # (E, W)
    if second is not None:
        m = F.silu(second(m))
    s = weighted_sum(m, edges.weights, edges.receivers, edges.starts)  # (A, W)
    v = (edges.directions * m[:, None, :channels]).flatten(1)  # (E, 3K)
    v = v.new_zeros(len(s), v.shape[1]).index_add(0, edges.receivers, v)
    return s, v.view(len(s), 3, channels)


class EGNNLayer(nn.Module):
    """h_i += step * phi(x_i, sum_j m_ij, |V_i|) with x = norm(h), and V_i += sum_j u_ij m_ij W_v."""

    def __init__(self, config: EGNNConfig):
        super().__init__()
        width, channels = config.width, config.channels
        self.deferred = config.form == "deferred"  # W_2 acts on sums over neighbours: no matrix product per edge
        self.project = linear(width, 2 * width)  # rows: P_i, Q_j
        self.radial = nn.Parameter(torch.randn(width, config.radial) / math.sqrt(config.radial))
        self.second = linear(width, width, bias=True)
        self.mix = linear(channels, channels)
        self.hidden = linear(2 * width + channels, width, bias=True)
        self.update = linear(width, width)
        self.step = nn.Parameter(torch.full((width,), 1 / math.sqrt(config.depth)))

    def forward(self, h: Tensor, vectors: Tensor | None, edges: Edges) -> tuple[Tensor, Tensor]:
        x = rms_norm(h)  # (A, W)
        table = self.project(x).view(-1, h.shape[1])  # (2A, W)
        second = None if self.deferred else self.second
        s, v = edge_messages(table, self.radial, second, edges, self.mix.in_features)
        if self.deferred:
            s = F.silu(self.second(s))
        vectors = self.mix(v) if vectors is None else vectors + self.mix(v)  # (A, 3, K)
        lengths = torch.sqrt(vectors.square().sum(1) + 1)  # (A, K), smooth at 0
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
        self.register_buffer("scale", torch.tensor(1 / math.sqrt(average_degree)))

    def forward(self, graphs: AtomGraphs, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        edges = embed_edges(graphs, vectors, self.cutoff, self.radial, self.scale)
        h = self.element(graphs.numbers) + self.source(graphs.source[graphs.structure])  # (A, W)
        v = None
        for layer in self.layers:
            h, v = layer(h, v, edges)
        out = self.readout(F.silu(self.hidden(rms_norm(h))))  # (A, 1 + K): energy, gates of the vectors
        return out[:, 0], (v * out[:, None, 1:]).sum(2) if self.direct else None
