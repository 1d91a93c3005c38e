"""EGNN (Satorras et al., arXiv:2102.09844) made exactly E(3)-equivariant and trainable at any width and depth.

Differences from the paper: atoms do not move, vectors V_i are carried instead, so nothing depends on the origin;
a radial basis and a smooth cutoff in place of d^2; pre-norm residual layers with a learnable step.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models.edges import Edges, edge_messages, make_edges
from gnnscale.models.kernels.chunked import Weights
from gnnscale.models.layered import LayeredBackbone
from gnnscale.models.layers import make_linear, rms_norm, vector_lengths


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
        features = torch.cat((x, s, vector_lengths(vectors)), dim=1)  # (A, 2W + K)
        return h + self.step * self.update(F.silu(self.hidden(features))), vectors


class EGNN(LayeredBackbone):
    """Layers between an embedding of elements and sources and a readout of energies and gates of vectors."""

    def __init__(self, config: EGNNConfig, sources: int, average_degree: float, edge_chunk: int | None = None):
        super().__init__(config, (EGNNLayer(config) for _ in range(config.depth)), sources, average_degree)
        self.edge_chunk = edge_chunk
        # As kernels; then all edges are one chunk. Gradient forces are learned by tangents, which have no kernels.
        self.stores_no_edges = config.form == "deferred" and config.forces == "direct"

    def forward(self, graphs: AtomGraphs, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        edges = make_edges(graphs, vectors, self.cutoff, self.radial, self.scale, self.edge_chunk, self.stores_no_edges)
        h, v = self.embed_atoms(graphs), None
        for layer in self.layers:
            h, v = layer(h, v, edges)
        assert v is not None, "there is a layer at least"
        return self.read_out(h, v, graphs)
