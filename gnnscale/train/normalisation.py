"""Reference energies and scales of labels, pooled over sources: from labels in eV to what a network learns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from ase.data import atomic_numbers
from torch import Tensor

from gnnscale.architectures.base import ELEMENTS
from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.data.storage.label_rms import pool_label_rms
from gnnscale.models.potential import Normalised

# Angstrom, a distance of neighbours; .3 to 3 were tried on molecules, an alloy, relaxations on surfaces and mixed crystals
SLOPE_LENGTH = 3.0


def pool_normalisation(cards: tuple[ShardCard, ...], learns_slopes: bool) -> Normalisation:
    """Pool the references and scales of all sources from their cards, which are of the training split.

    Where forces are learned as slopes of the energy, one output serves both. Its unit is then the rms of the forces times
    a length: the slopes are of order one, and 3 meV per atom weigh as much as 1 meV/Angstrom. In units of the energy's
    own rms the slopes of a molecule would have to be of order 100, and its energy would outweigh its forces as much.
    """
    references = torch.zeros(len(cards), ELEMENTS, dtype=torch.float64)
    for index, card in enumerate(cards):
        for symbol, energy in card.baselines.items():
            references[index, atomic_numbers[symbol]] = energy
    energy, force = pool_label_rms(cards)
    return Normalisation(references.nan_to_num(0.0), force * SLOPE_LENGTH if learns_slopes else energy, force)


class Normalisation(NamedTuple):
    """The change from labels in eV to what the network learns: interaction energies and forces of order one."""

    references: Tensor  # (sources, ELEMENTS) float64, eV
    energy_scale: float  # eV/atom; see pool_normalisation
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
