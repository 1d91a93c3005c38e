"""EGNN as the paper that is reproduced here (arXiv:2504.08112) trained it: HydraGNN's equations, as a baseline.

From ORNL/HydraGNN, models/EGCLStack.py and the authors' configuration: an atom begins as its atomic number and its
Cartesian coordinates, as they are, so energies depend on the origin and forces do not rotate with the atoms
(tests/gnnscale/models/test_physics.py shows it); no residual, no normalisation, no envelope, no basis; ReLU; sums over
neighbours.
Ours: energies are summed over atoms, where theirs are means, so that all models learn the same labels; each head has one
hidden layer as wide as the network (theirs: fixed widths of 25 to 200); the first matrix is applied before the gather,
which is the same function. Parameters at depth 3 without heads: 17 W^2, as counted for theirs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models.backbone import Backbone

INPUTS = 4  # Z, x, y, z


def make_uniform(rows: int, columns: int, fan_in: int) -> nn.Parameter:
    """Return a matrix with the initial weights of nn.Linear."""
    return nn.Parameter(torch.empty(rows, columns).uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in)))


class PaperLayer(nn.Module):
    """Messages, the move of atoms, sums over neighbours and an update: equations 3 to 6."""

    def __init__(self, inputs: int, width: int, moves: bool):
        super().__init__()
        fan_in = 2 * inputs + 2
        self.project = (
            make_uniform(2 * width, inputs, fan_in) if inputs == INPUTS else nn.Linear(inputs, 2 * width, bias=False)
        )
        self.lengths = make_uniform(width, 2, fan_in)
        self.bias = nn.Parameter(make_uniform(1, width, fan_in).data[0])
        self.second = nn.Linear(width, width)
        self.hidden, self.update = nn.Linear(inputs + width, width), nn.Linear(width, width)
        self.gate = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1, bias=False)) if moves else None
        )

    def forward(self, h: Tensor, vectors: Tensor, edge_length: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new h (A, W) and x_j - x_i (E, 3) of where atoms have moved to."""
        weight = self.project if isinstance(self.project, nn.Parameter) else self.project.weight
        p, q = F.linear(h, weight).chunk(2, dim=1)  # (A, W)
        r = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)  # (E, 1)
        edge = F.linear(torch.cat((r, edge_length), dim=1), self.lengths, self.bias)
        m = F.relu(self.second(F.relu(p.index_select(0, i) + q.index_select(0, j) + edge)))  # (E, W), eq. 3
        if self.gate is not None:  # eq. 4
            moved = mean_over_edges(vectors / (r + 1) * torch.tanh(self.gate(m)), i, len(h)).clamp(-100, 100)  # (A, 3)
            vectors = vectors + moved.index_select(0, j) - moved.index_select(0, i)
        s = m.new_zeros(len(h), m.shape[1]).index_add(0, i, m)  # eq. 5
        return F.relu(self.update(F.relu(self.hidden(torch.cat((h, s), dim=1))))), vectors  # eq. 6


def mean_over_edges(x: Tensor, i: Tensor, atoms: int) -> Tensor:
    return x.new_zeros(atoms, x.shape[1]).index_add(0, i, x) / torch.bincount(i, minlength=atoms).clamp(min=1)[:, None]


class PaperEGNN(Backbone):
    """The layers and two heads. Edges are always kept, as in theirs, so `edge_chunk` has no effect."""

    def __init__(self, config: EGNNConfig, sources: int, average_degree: float, edge_chunk: int | None = None):
        super().__init__(config, sources, average_degree)
        width, last = config.width, config.depth - 1
        self.layers = nn.ModuleList(PaperLayer(width if n else INPUTS, width, n < last) for n in range(config.depth))
        self.energy, self.forces = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)) for outputs in (1, 3)
        )

    def forward(self, graphs: AtomGraphs, vectors: Tensor) -> tuple[Tensor, Tensor]:
        lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)  # (E, 1) Angstrom
        h = torch.cat((graphs.numbers[:, None].to(vectors.dtype), graphs.positions), dim=1)  # (A, 4)
        for layer in self.layers:
            h, vectors = layer(h, vectors, lengths, graphs.receivers, graphs.senders)
        return self.energy(h)[:, 0], self.forces(h)
