"""The interface of every network: from atoms and edge vectors to energies of atoms, and forces where it has a head for them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from gnnscale.architectures.base import Architecture
from gnnscale.atoms.graph import AtomGraphs


class Backbone(nn.Module, ABC):
    """A network in unit scales; gnnscale.models.potential makes energies, forces and stress of what it returns."""

    # Message-passing layers in their order. The first argument and the first result of each are the features of atoms,
    # (A, W): there they are measured, and each layer is computed again as a whole where memory is short.
    layers: nn.ModuleList

    @abstractmethod
    def __init__(self, config: Architecture, sources: int, average_degree: float, edge_chunk: int | None = None):
        """Draw random weights; `average_degree` is neighbours per atom in the training data."""
        super().__init__()

    @abstractmethod
    def forward(self, graphs: AtomGraphs, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the energy of each atom (A,) and its force (A, 3), or None where it is dE/dx; vectors are (E, 3)."""
