"""Baselines: equations in the way of PyG and HydraGNN, gather both ends, concatenate, Linear, scatter_add.

Weights are ours, put side by side: the first matrix of an edge is (W, 2W + R).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models.egnn import EGNN
from gnnscale.models.egnn_paper import PaperLayer
from gnnscale.models.layers import BASE_CHANNELS, bessel, envelope, rms_norm


class PlainLayer(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        width, radial = layer.radial.shape
        self.first = nn.Linear(2 * width + radial, width, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.cat((*layer.project.weight.split(width), layer.radial), dim=1))
        self.second, self.mix, self.hidden, self.update = layer.second, layer.mix, layer.hidden, layer.update
        self.step, self.deferred = layer.step, layer.deferred

    def forward(self, h, vectors, i, j, basis, w, unit):
        x = rms_norm(h)
        m = F.silu(self.first(torch.cat((x[i], x[j], basis), dim=1)))  # (E, W)
        if not self.deferred:
            m = F.silu(self.second(m))
        weighted = m * w[:, None]
        s = scatter(weighted, i, len(h))
        v = torch.stack([scatter(self.mix(weighted) * unit[:, c : c + 1], i, len(h)) for c in range(3)])
        if self.deferred:
            s = F.silu(self.second(s))
        vectors = v if vectors is None else vectors + v
        lengths = torch.sqrt(vectors.square().sum(0) + 1)
        return h + self.step * self.update(F.silu(self.hidden(torch.cat((x, s, lengths), dim=1)))), vectors


def scatter(x: Tensor, i: Tensor, atoms: int) -> Tensor:
    return x.new_zeros(atoms, x.shape[1]).scatter_add(0, i[:, None].expand_as(x), x)


class HydraLayer(nn.Module):
    """HydraGNN's own layer, from a PaperLayer and its weights; not its first, so of W inputs."""

    def __init__(self, layer: PaperLayer):
        super().__init__()
        width = len(layer.bias)
        self.first = nn.Linear(2 * width + 2, width)
        with torch.no_grad():
            self.first.weight.copy_(torch.cat((*layer.project.weight.split(width), layer.lengths), dim=1))
            self.first.bias.copy_(layer.bias)
        self.edge = nn.Sequential(self.first, nn.ReLU(), layer.second, nn.ReLU())
        self.node = nn.Sequential(layer.hidden, nn.ReLU(), layer.update, nn.ReLU())
        self.gate = layer.gate

    def forward(self, h: Tensor, vectors: Tensor, edge_length: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        r = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        m = self.edge(torch.cat((h[i], h[j], r, edge_length), dim=1))
        if self.gate is not None:
            steps = vectors / (r + 1) * torch.tanh(self.gate(m))
            count = scatter(torch.ones_like(steps), i, len(h)).clamp(min=1)
            moved = (scatter(steps, i, len(h)) / count).clamp(-100, 100)
            vectors = vectors + moved[j] - moved[i]
        return self.node(torch.cat((h, scatter(m, i, len(h))), dim=1)), vectors


class PlainEGNN(nn.Module):
    """A backbone like the one that it is made from, and with its weights."""

    def __init__(self, ours: EGNN, checkpointed: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(PlainLayer(layer) for layer in ours.layers)
        self.element, self.source, self.hidden, self.readout = ours.element, ours.source, ours.hidden, ours.readout
        self.cutoff, self.radial, self.direct, self.scale = ours.cutoff, ours.radial, ours.direct, ours.scale
        self.checkpointed = checkpointed

    def forward(self, graphs: AtomGraphs, vectors: Tensor):
        r = torch.linalg.vector_norm(vectors, dim=1)
        geometry = (
            bessel(r[:, None], self.cutoff, self.radial),
            envelope(r, self.cutoff) * self.scale,
            vectors / r[:, None],
        )
        h = self.element(graphs.numbers) + self.source(graphs.source[graphs.structure])
        v = None
        for layer in self.layers:
            inputs = (h, v, graphs.receivers, graphs.senders, *geometry)
            h, v = checkpoint(layer, *inputs, use_reentrant=False) if self.checkpointed else layer(*inputs)
        out = self.readout(F.silu(self.hidden(rms_norm(h))))
        return out[:, 0], (v * out[:, 1:]).mean(2).t() * BASE_CHANNELS if self.direct else None
