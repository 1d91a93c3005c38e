"""SchNet (Schütt et al., arXiv 1706.08566) in few lines: an example of a network of your own.

Messages are features of neighbours times a filter of the distance. Shapes: A atoms, E edges, W width, R radial functions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from gnnscale.architectures.schnet import SchNetConfig
from torch import Tensor, nn

from gnnscale.architectures.base import ELEMENTS
from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models.backbone import Backbone
from gnnscale.models.layers import bessel, envelope, make_linear, rms_norm


class Interaction(nn.Module):
    """h_i += update(SiLU(hidden(sum_j project(h_j) * filter(r_ij)))), eq. 2 of the paper, with a norm before."""

    def __init__(self, config: SchNetConfig):
        super().__init__()
        width = config.width
        self.project = make_linear(width, width)
        self.radial = nn.Parameter(torch.randn(width, config.radial) / math.sqrt(config.radial))
        self.hidden = make_linear(width, width, bias=True)
        self.update = make_linear(width, width)

    def forward(self, h: Tensor, basis: Tensor, scale: Tensor, graphs: AtomGraphs) -> tuple[Tensor]:
        """Return the new features in a tuple, as a Backbone's layers may return more than these."""
        filters = F.linear(basis, self.radial) * scale  # (E, W)
        messages = self.project(rms_norm(h)).index_select(0, graphs.senders) * filters  # (E, W)
        sums = torch.zeros_like(h).index_add(0, graphs.receivers, messages)  # (A, W)
        return (h + self.update(F.silu(self.hidden(sums))),)


class SchNet(Backbone):
    """Energy of each atom; forces follow from it by differentiation."""

    def __init__(self, config: SchNetConfig, sources: int, average_degree: float, edge_chunk: int | None = None):
        super().__init__(config, sources, average_degree, edge_chunk)
        self.cutoff, self.basis_functions = config.cutoff, config.radial
        self.element = nn.Embedding(ELEMENTS, config.width)
        self.source = nn.Embedding(sources, config.width)
        nn.init.zeros_(self.source.weight)  # all sources begin as one
        self.layers = nn.ModuleList(Interaction(config) for _ in range(config.depth))
        self.hidden = make_linear(config.width, config.width, bias=True)
        self.readout = make_linear(config.width, 1, zero=True)
        self.register_buffer("scale", torch.tensor(1 / math.sqrt(max(average_degree, 1.0))))

    def forward(self, graphs: AtomGraphs, vectors: Tensor) -> tuple[Tensor, None]:
        r = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)  # (E, 1) Angstrom
        basis, scale = bessel(r, self.cutoff, self.basis_functions), envelope(r, self.cutoff) * self.scale
        h = self.element(graphs.numbers) + self.source(graphs.source[graphs.structure])  # (A, W)
        for layer in self.layers:
            (h,) = layer(h, basis, scale, graphs)
        return self.readout(F.silu(self.hidden(rms_norm(h)))).squeeze(1), None
