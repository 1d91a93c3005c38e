"""The common ends of networks that are layers: an embedding of elements and sources, and a readout of energies and forces."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnscale.architectures.base import ELEMENTS
from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models.backbone import Backbone
from gnnscale.models.layers import linear_by_source, make_linear, read_atoms, rms_norm


class LayeredConfig(Protocol):
    """The options that the ends ask for."""

    @property
    def width(self) -> int: ...
    @property
    def cutoff(self) -> float: ...
    @property
    def radial(self) -> int: ...
    @property
    def forces(self) -> str: ...
    @property
    def source_heads(self) -> bool: ...
    @property
    def outputs(self) -> int: ...


class LayeredBackbone(Backbone):
    """A network of layers that carry scalars (A, W) and vectors (3, A, K) of atoms from one end to the other."""

    scale: Tensor  # 1 / sqrt(average degree)

    def __init__(self, config: LayeredConfig, layers: Iterable[nn.Module], sources: int, average_degree: float):
        """Draw random weights: those of the embeddings, then those of `layers`, which are made as they are asked for."""
        nn.Module.__init__(self)
        self.cutoff, self.radial, self.direct = config.cutoff, config.radial, config.forces == "direct"
        self.element = nn.Embedding(ELEMENTS, config.width)
        self.source = nn.Embedding(sources, config.width)
        nn.init.zeros_(self.source.weight)  # all sources begin as one
        self.layers = nn.ModuleList(layers)
        self.hidden = make_linear(config.width, config.width, bias=True)
        self.heads = sources if config.source_heads else 1
        self.readout = make_linear(config.width, config.outputs * self.heads, zero=True)
        self.register_buffer("scale", torch.tensor(1 / math.sqrt(max(average_degree, 1.0))))

    def embed_atoms(self, graphs: AtomGraphs) -> Tensor:
        """Return the features of atoms that the first layer sees, (A, W)."""
        return self.element(graphs.numbers) + self.source(graphs.source[graphs.structure])

    def read_out(self, h: Tensor, vectors: Tensor, graphs: AtomGraphs) -> tuple[Tensor, Tensor | None]:
        """Return energies (A,), and forces (A, 3) where they are no slopes, from what the last layer left."""
        x = F.silu(self.hidden(rms_norm(h)))
        source = graphs.source[graphs.structure]  # (A,)
        # (A, 1 + K): energy, gates of vectors
        out = self.readout(x) if self.heads == 1 else linear_by_source(x, self.readout.weight, source, self.heads)
        return read_atoms(out, vectors) if self.direct else (out[:, 0], None)
