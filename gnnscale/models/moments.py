"""A network that carries vectors and traceless symmetric tensors beside scalars, and whose messages see them: l = 2.

Like EGNN (gnnscale/models/egnn.py) it has no matrix product per edge that is as large as width x width, and exact
E(3)-equivariance. Unlike it, an atom knows the second moments of its neighbourhood, how its vectors lie in its tensors
(V^T T V), and a message knows the angles between an edge and the sender's own vectors and tensors.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnscale.architectures.moments import MomentsConfig
from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models.layered import LayeredBackbone
from gnnscale.models.layers import make_linear, rms_norm, vector_lengths
from gnnscale.models.moment_edges import Carried, MomentEdges, contract_tensors, make_moment_edges, moment_messages


class MomentsLayer(nn.Module):
    """The update h_i += step * phi(x_i, s_i, |V_i|, |T_i|, V_i^T T_i V_i), with V_i and T_i by sums of messages."""

    def __init__(self, config: MomentsConfig, is_first: bool):
        super().__init__()
        width, channels, seen = config.width, config.channels, 2 * config.channels_seen
        self.project = make_linear(width, 2 * width)  # rows: P_i, Q_j
        self.radial = nn.Parameter(torch.randn(width, config.radial) / math.sqrt(config.radial))
        # Plain, as its fan-in does not grow with the width. Before the first layer there is nothing to see.
        self.angles = None if is_first else nn.Parameter(torch.randn(width, seen) / math.sqrt(seen))
        self.second = make_linear(width, width, bias=True)
        self.mix = make_linear(width, channels)  # the gates of the vectors, linear in m
        self.mix_tensors = make_linear(width, channels)
        self.hidden = make_linear(2 * width + 3 * channels, width, bias=True)
        self.update = make_linear(width, width)
        self.step = nn.Parameter(torch.full((width,), 1 / math.sqrt(config.depth)))

    def forward(self, h: Tensor, carried: Carried | None, edges: MomentEdges) -> tuple[Tensor, Carried]:
        x, (vectors, tensors) = rms_norm(h), carried or (None, None)
        s, v, t = moment_messages(self.project(x), self.radial, self.angles, vectors, tensors, edges)
        s, v, t = F.silu(self.second(s)), self.mix(v), self.mix_tensors(t)
        if carried is not None:
            v, t = carried.vectors + v, carried.tensors + t
        invariants = vector_lengths(v), vector_lengths(t), contract_tensors(v, t)  # (A, K) each
        features = torch.cat((x, s, *invariants), dim=1)  # (A, 2W + 3K)
        return h + self.step * self.update(F.silu(self.hidden(features))), Carried(v, t)


class Moments(LayeredBackbone):
    """Layers between an embedding of elements and sources and a readout of energies and gates of vectors."""

    def __init__(self, config: MomentsConfig, sources: int, average_degree: float, edge_chunk: int | None = None):
        layers = (MomentsLayer(config, is_first=k == 0) for k in range(config.depth))
        super().__init__(config, layers, sources, average_degree)

    def forward(self, graphs: AtomGraphs, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        edges = make_moment_edges(graphs, vectors, self.cutoff, self.radial, self.scale)
        h, carried = self.embed_atoms(graphs), None
        for layer in self.layers:
            h, carried = layer(h, carried, edges)
        assert carried is not None, "there is a layer at least"
        return self.read_out(h, carried.vectors, graphs)
