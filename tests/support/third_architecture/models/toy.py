"""A continuous-filter convolution after SchNet (Schuett et al., arXiv:1706.08566): the third architecture of a test."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from gnnscale.architectures.toy import ToyConfig
from torch import Tensor, nn

from gnnscale.architectures.base import ELEMENTS
from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models.backbone import Backbone
from gnnscale.models.layers import bessel, envelope, make_linear


class ToyLayer(nn.Module):
    def __init__(self, config: ToyConfig):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(config.width, config.filters) / math.sqrt(config.filters))
        self.update = make_linear(config.width, config.width)

    def forward(self, h: Tensor, basis: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor]:
        messages = h.index_select(0, j) * F.linear(basis, self.filter)  # (E, W)
        return (h + self.update(F.silu(torch.zeros_like(h).index_add(0, i, messages.to(h.dtype)))),)


class Toy(Backbone):
    """Energies of atoms, and forces as sums of edge vectors or as the slope of the energy."""

    def __init__(self, config: ToyConfig, sources: int, average_degree: float, edge_chunk: int | None = None):
        super().__init__(config, sources, average_degree)
        self.cutoff, self.filters = config.cutoff, config.filters
        self.element = nn.Embedding(ELEMENTS, config.width)
        self.layers = nn.ModuleList(ToyLayer(config) for _ in range(config.depth))
        self.energy = make_linear(config.width, 1, zero=True)
        self.force = make_linear(config.width, 1) if config.forces == "direct" else None
        self.register_buffer("scale", torch.tensor(1 / math.sqrt(max(average_degree, 1.0))))

    def forward(self, graphs: AtomGraphs, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        i, j = graphs.receivers, graphs.senders
        r = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)  # (E, 1) Angstrom
        w = envelope(r, self.cutoff) * self.scale
        basis = w * bessel(r, self.cutoff, self.filters)
        h = self.element(graphs.numbers)  # (A, W)
        for layer in self.layers:
            (h,) = layer(h, basis, i, j)
        energies = self.energy(F.silu(h))[:, 0]
        if self.force is None:
            return energies, None
        pull = self.force(F.silu(h.index_select(0, i) + h.index_select(0, j))) * w / r  # (E, 1)
        return energies, vectors.new_zeros(len(h), 3).index_add(0, i, (pull * vectors).to(vectors.dtype))
