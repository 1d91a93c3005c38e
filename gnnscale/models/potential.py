"""From a backbone to energies, forces and stress; the same for every architecture.

A backbone sees geometry only as edge vectors v_ij, so the potential cannot depend on the origin, and one derivative
dE/dv_ij gives both exact forces and the stress. (But for the paper's own network, which reads positions.)
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gnnscale.architectures.base import ELEMENTS
from gnnscale.atoms.graph import AtomGraphs, Properties, edge_vectors
from gnnscale.models.backbone import Backbone
from gnnscale.models.force_gradients import energies_and_slopes

NO_STRESS = "a model with forces = 'direct' has no stress; train one with forces = 'gradient'"


class Normalised(NamedTuple):
    """Predictions in the units of training: interaction energy / energy_scale, without references; forces / force_scale."""

    energy: Tensor  # (B,) float64
    forces: Tensor  # (A, 3)
    virial: Tensor | None = None  # (B, 3, 3) dE/d(strain) / energy_scale, on request


class Predictor(Protocol):
    """A potential that only predicts: a `Potential`, or one whose network something else than PyTorch computes."""

    references: Tensor  # (sources, elements) eV
    energy_scale: Tensor  # eV per atom
    force_scale: Tensor  # eV/Angstrom

    def __call__(self, graphs: AtomGraphs, stress: bool = False) -> Normalised: ...


class Potential(nn.Module):
    """A network with the scales of its labels: `potential(graphs)` for training, `predict(potential, graphs)` in eV."""

    NORMALISATION = ("references", "energy_scale", "force_scale")
    references: Tensor  # (sources, elements) eV
    energy_scale: Tensor  # eV per atom
    force_scale: Tensor  # eV/Angstrom
    backbone: Backbone

    def __init__(self, backbone: Backbone, sources: int, gradient: bool, tangents: bool = False):
        super().__init__()
        self.backbone, self.gradient = backbone, gradient
        self.tangents = tangents  # how to learn gradient forces: by tangents or by a graph of the backward pass
        self.register_buffer("references", torch.zeros(sources, ELEMENTS, dtype=torch.float64))  # eV
        self.register_buffer("energy_scale", torch.ones((), dtype=torch.float64))  # eV
        self.register_buffer("force_scale", torch.ones((), dtype=torch.float64))  # eV/Angstrom

    def set_normalisation(self, references: Tensor, energy_scale: float, force_scale: float) -> None:
        """Set the reference energies (sources, elements) in eV and the scales, rms values of the training labels."""
        if references.shape != self.references.shape:
            raise ValueError(f"references are {tuple(references.shape)}, expected {tuple(self.references.shape)}")
        self.references.copy_(references)
        self.energy_scale.fill_(energy_scale)
        self.force_scale.fill_(force_scale)

    def forward(self, graphs: AtomGraphs, stress: bool = False) -> Normalised:
        vectors = edge_vectors(graphs)  # (E, 3) Angstrom
        if self.gradient:
            return self._differentiate(graphs, vectors, stress)
        if stress:
            raise ValueError(NO_STRESS)
        energies, forces = self.backbone(graphs, vectors)
        assert forces is not None
        return Normalised(sum_by_structure(energies, graphs), forces)

    def _differentiate(self, graphs: AtomGraphs, vectors: Tensor, stress: bool) -> Normalised:
        energies, slope = (energies_and_slopes if self.tangents else differentiable_slopes)(
            self.backbone, graphs, vectors
        )
        energy = sum_by_structure(energies, graphs)
        # v_ij = x_j - x_i, so F_i = -dE/dx_i gathers the slope of its own edges, less that of edges that end in it
        forces = torch.zeros_like(graphs.positions, dtype=slope.dtype)
        forces = forces.index_add(0, graphs.receivers, slope).index_add(0, graphs.senders, -slope)
        forces = forces * (self.energy_scale / self.force_scale)
        if not stress:
            return Normalised(energy, forces)
        # a strain e takes v to (1 + e) v; an invariant energy makes this symmetric, up to rounding
        outer = slope[:, :, None] * vectors[:, None, :]  # (E, 3, 3)
        virial = outer.new_zeros(graphs.cell.shape).index_add(0, graphs.structure[graphs.receivers], outer)
        return Normalised(energy, forces, (virial + virial.mT) / 2)

    def _apply(self, fn, recurse: bool = True) -> Potential:
        """Keep the normalisation in float64 when the module is cast: -1e4 eV would be rounded to meV or worse."""
        exact = {name: getattr(self, name) for name in self.NORMALISATION}
        super()._apply(fn, recurse)
        for name, tensor in exact.items():
            cast = getattr(self, name)
            if cast.dtype != tensor.dtype:
                setattr(self, name, tensor.to(cast.device))
        return self


def differentiable_slopes(backbone: nn.Module, graphs: AtomGraphs, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return energies of atoms (A,) and dE/dv_ij (E, 3), with a graph where gradients are wanted."""
    learning = torch.is_grad_enabled()
    with torch.enable_grad():
        vectors = vectors.detach().requires_grad_()
        energies, _ = backbone(graphs, vectors)
        (slope,) = torch.autograd.grad(energies.sum(), vectors, create_graph=learning)
    return energies if learning else energies.detach(), slope


def sum_by_structure(energies: Tensor, graphs: AtomGraphs) -> Tensor:
    """Sum over the atoms of each structure, in float64: (B,)."""
    total = torch.zeros(len(graphs.cell), dtype=torch.float64, device=energies.device)
    return total.index_add(0, graphs.structure, energies.double())


def predict(potential: Predictor, graphs: AtomGraphs, stress: bool = False) -> Properties:
    """Predict in physical units; stress is NaN where a structure has no volume."""
    energy, forces, virial = potential(graphs, stress)
    references = potential.references[graphs.source[graphs.structure], graphs.numbers]  # (A,) eV, float64
    energy = energy * potential.energy_scale + sum_by_structure(references, graphs)
    if virial is not None:
        volume = torch.linalg.det(graphs.cell).abs()[:, None, None]  # (B, 1, 1) Angstrom^3
        virial = torch.where(volume > 0, virial * potential.energy_scale / volume, torch.nan)
    return Properties(energy, forces * potential.force_scale, virial)


def find_hidden_matrices(potential: nn.Module) -> list[Tensor]:
    """Return the weights whose fan-in grows with the width, which learn at rate x 64/width: exactly those of nn.Linear.

    By agreement, a matrix of constant fan-in (radial functions, embeddings) is a plain parameter or an nn.Embedding.
    """
    return [module.weight for module in potential.modules() if isinstance(module, nn.Linear)]
