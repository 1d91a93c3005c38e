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

from gnnscale.architectures.base import ELEMENTS
from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models.backbone import Backbone
from gnnscale.models.kernels.chunked import Chunk, Weights, split_into_chunks
from gnnscale.models.kernels.messages import can_fuse, chunked_messages
from gnnscale.models.layers import Layout, Pattern, bessel, envelope, make_linear, rms_norm, sparse_product

BASE_CHANNELS = 8


class Edges(NamedTuple):
    """The graph as sparse matrices and its geometry, shared by all layers."""

    basis: Tensor  # (E, R) radial functions of r_ij
    scale: Tensor  # (4, E) w_ij and the components of w_ij u_ij; w is the envelope / sqrt(average degree)
    graph: Patterns | list[Chunk]


class Patterns(NamedTuple):
    """The places of the entries of the two sparse matrices of a graph."""

    pair: Pattern  # (E, 2A): the row of an edge adds row i of P and row j of Q
    moment: Pattern  # (4A, E): four sums over the edges of each atom


def embed_edges(vectors: Tensor, cutoff: float, radial: int, scale: Tensor, graph: Patterns | list[Chunk]) -> Edges:
    r = torch.linalg.vector_norm(vectors, dim=1)  # (E,) Angstrom
    w = envelope(r, cutoff) * scale
    return Edges(bessel(r[:, None], cutoff, radial), torch.cat((w[None], vectors.t() * (w / r))), graph)


def build_patterns(graphs: AtomGraphs) -> Patterns:
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
    return Patterns(Pattern(pair, pair_t), Pattern(moment, moment_t))


def edge_messages(table: Tensor, weights: Weights, edges: Edges) -> tuple[Tensor, Tensor]:
    """Return s_i = sum_j w_ij m_ij (A, W) and, for fewer channels, v_i = sum_j w_ij u_ij W_v m_ij (3, A, K).

    m_ij = SiLU(P_i + Q_j + W_r b(r_ij)), then SiLU(W_2 m + b_2) if there is a `second`: equations 3 and 5 of the paper
    with the first matrix applied before the gather, to give P and Q, (A, 2W). All that is as large as edges x width is
    born and dies here; `chunked_messages` are the same numbers, without ever holding all of it.
    """
    if isinstance(edges.graph, list):
        return chunked_messages(edges.graph, table.view(-1, table.shape[1] // 2), edges.basis, edges.scale, weights)
    width = table.shape[1] // 2
    rows = table.view(-1, 2, width).transpose(0, 1).reshape(-1, width)  # P above Q
    pairs = sparse_product(edges.graph.pair, None, rows)  # (E, W)
    m = F.silu(torch.addmm(pairs, edges.basis, weights.radial.t()))
    if weights.second is not None:
        m = F.silu(F.linear(m, weights.second, weights.bias))
    sums = sparse_product(edges.graph.moment, edges.scale.view(-1), m).view(4, -1, width)  # (4, A, W)
    return sums[0], F.linear(sums[1:], weights.mix)


class EGNNLayer(nn.Module):
    """The update h_i += step * phi(x_i, sum_j m_ij, |V_i|) with x = norm(h), and V_i += sum_j u_ij m_ij W_v."""

    def __init__(self, config: EGNNConfig):
        super().__init__()
        width, channels = config.width, config.channels
        self.deferred = config.form == "deferred"  # W_2 acts on sums over neighbours: no matrix product per edge
        self.project = make_linear(width, 2 * width)  # rows: P_i, Q_j
        self.radial = nn.Parameter(torch.randn(width, config.radial) / math.sqrt(config.radial))
        self.second = make_linear(width, width, bias=True)
        self.mix = make_linear(width, channels)  # the gates of the vectors, linear in m
        self.hidden = make_linear(2 * width + channels, width, bias=True)
        self.update = make_linear(width, width)
        self.step = nn.Parameter(torch.full((width,), 1 / math.sqrt(config.depth)))

    def forward(self, h: Tensor, vectors: Tensor | None, edges: Edges) -> tuple[Tensor, Tensor]:
        x = rms_norm(h)  # (A, W)
        second, bias = (None, None) if self.deferred else (self.second.weight, self.second.bias)
        s, v = edge_messages(self.project(x), Weights(self.radial, second, bias, self.mix.weight), edges)
        if self.deferred:
            s = F.silu(self.second(s))
        vectors = v if vectors is None else vectors + v
        lengths = torch.sqrt(vectors.square().sum(0) + 1)  # (A, K), smooth at 0
        return h + self.step * self.update(F.silu(self.hidden(torch.cat((x, s, lengths), dim=1)))), vectors


class EGNN(Backbone):
    """Layers between an embedding of elements and sources and a readout of energies and gates of vectors."""

    scale: Tensor  # 1 / sqrt(average degree)

    def __init__(self, config: EGNNConfig, sources: int, average_degree: float, edge_chunk: int | None = None):
        super().__init__(config, sources, average_degree)
        self.edge_chunk = edge_chunk
        # As kernels; then all edges are one chunk. Gradient forces are learned by tangents, which have no kernels.
        self.stores_no_edges = config.form == "deferred" and config.forces == "direct"
        self.cutoff, self.radial, self.direct = config.cutoff, config.radial, config.forces == "direct"
        self.element = nn.Embedding(ELEMENTS, config.width)
        self.source = nn.Embedding(sources, config.width)
        nn.init.zeros_(self.source.weight)  # all sources begin as one
        self.layers = nn.ModuleList(EGNNLayer(config) for _ in range(config.depth))
        self.hidden = make_linear(config.width, config.width, bias=True)
        self.heads = sources if config.source_heads else 1
        self.readout = make_linear(config.width, config.outputs * self.heads, zero=True)
        self.register_buffer("scale", torch.tensor(1 / math.sqrt(max(average_degree, 1.0))))

    def forward(self, graphs: AtomGraphs, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        size = self.edge_chunk
        if self.stores_no_edges and can_fuse(vectors):
            size = len(vectors)
        graph = build_patterns(graphs) if size is None else split_into_chunks(graphs, size)
        edges = embed_edges(vectors, self.cutoff, self.radial, self.scale, graph)
        h = self.element(graphs.numbers) + self.source(graphs.source[graphs.structure])  # (A, W)
        v = None
        for layer in self.layers:
            h, v = layer(h, v, edges)
        assert v is not None, "there is a layer at least"
        x = F.silu(self.hidden(rms_norm(h)))
        out = self.readout(x) if self.heads == 1 else self.read_by_source(x, graphs)  # (A, 1 + K): energy, gates
        # A mean over channels, times those at width 64: so that widths move alike at one rate, which
        # tests/gnnscale/train/test_schedule.py shows.
        return out[:, 0], (v * out[:, 1:]).mean(2).t() * BASE_CHANNELS if self.direct else None

    def read_by_source(self, x: Tensor, graphs: AtomGraphs) -> Tensor:
        """Read each atom's numbers from the head of its source."""
        source, heads = graphs.source[graphs.structure], self.readout.weight.view(self.heads, -1, x.shape[1])
        out = x.new_zeros(len(x), heads.shape[1])
        for index, head in enumerate(heads):
            mine = torch.nonzero(source == index)[:, 0]
            out = out.index_add(0, mine, F.linear(x.index_select(0, mine), head).to(out.dtype))
        return out
