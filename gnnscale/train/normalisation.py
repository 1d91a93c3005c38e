"""Reference energies and scales of labels, pooled over sources: from labels in eV to what a network learns."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from ase.data import atomic_numbers
from torch import Tensor

from gnnscale.architectures.base import ELEMENTS
from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.models.potential import Normalised


def pool_normalisation(cards: tuple[ShardCard, ...]) -> Normalisation:
    """Pool the scales of all sources from their cards, which are of the training split; NaN: no such label."""
    references = torch.zeros(len(cards), ELEMENTS, dtype=torch.float64)
    for index, card in enumerate(cards):
        for symbol, energy in card.baselines.items():
            references[index, atomic_numbers[symbol]] = energy
    energies = [(card.counts["train"].structures, card.energy_rms) for card in cards]
    forces = [(card.counts["train"].atoms, card.force_rms) for card in cards]
    return Normalisation(references.nan_to_num(0.0), mean_rms(energies), mean_rms(forces))


def mean_rms(counted: list[tuple[int, float]]) -> float:
    """Return the rms over all sources from (count, rms) of each."""
    known = [(count, rms) for count, rms in counted if count and math.isfinite(rms)]
    square = sum(count * rms**2 for count, rms in known) / max(1, sum(count for count, _ in known))
    return math.sqrt(square) or 1.0  # no label, or all of them 0: any scale will do


class Normalisation(NamedTuple):
    """The change from labels in eV to what the network learns: interaction energies and forces of order one."""

    references: Tensor  # (sources, ELEMENTS) float64, eV
    energy_scale: float  # eV/atom
    force_scale: float  # eV/Angstrom

    def __call__(self, graphs: AtomGraphs, labels: Properties, natoms: Tensor) -> Normalised:
        of_atoms = self.references[graphs.source[graphs.structure], graphs.numbers]  # (A,)
        reference = torch.zeros(len(natoms), dtype=torch.float64, device=of_atoms.device)
        reference.index_add_(0, graphs.structure, of_atoms)
        energy = (labels.energy - reference) / self.energy_scale
        assert labels.stress is not None, "labels have a stress, NaN where there is none"
        virial = labels.stress * (volumes(graphs.cell)[:, None, None] / self.energy_scale)
        return Normalised(energy, labels.forces / self.force_scale, virial)

    def to(self, device: torch.device) -> Normalisation:
        return self._replace(references=self.references.to(device))


def volumes(cell: Tensor) -> Tensor:
    """Return volumes in Angstrom^3, (B,); NaN without a cell, where a stress means nothing."""
    volume = torch.linalg.det(cell).abs()
    return torch.where(volume > 0, volume, torch.nan)
