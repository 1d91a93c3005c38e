"""Reference energies and scales of labels, pooled over sources: from labels in eV to what a network learns."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from ase.data import atomic_numbers
from torch import Tensor

from gnnscale.architectures.base import ELEMENTS
from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.data.storage.label_rms import pool_label_rms
from gnnscale.models.potential import Normalised

# By forces, in Angstrom. Slopes: a distance of neighbours; .3 to 3 were tried on molecules, an alloy, relaxations on surfaces
# and mixed crystals. Direct: .1 to .4 are alike on molecules, and change nothing where energies vary more than that.
ENERGY_LENGTHS = {"gradient": 3.0, "direct": 0.2}


def pool_normalisation(cards: tuple[ShardCard, ...], forces: Literal["direct", "gradient"] | None) -> Normalisation:
    """Pool the references and scales of all sources from their cards, which are of the training split.

    `forces` are those that are learned, if any. The unit of energies is their rms, but at least the rms of the forces times
    a length: in one molecule or a liquid energies per atom hardly vary, and in units of their own rms they would outweigh
    the forces a hundredfold. Gradient forces, for which one output serves both, would not be learned at all, and slopes of
    that output would have to be of order 100.
    """
    references = torch.zeros(len(cards), ELEMENTS, dtype=torch.float64)
    for index, card in enumerate(cards):
        for symbol, energy in card.baselines.items():
            references[index, atomic_numbers[symbol]] = energy
    energy, force = pool_label_rms(cards)
    unit = energy if forces is None else max(energy, ENERGY_LENGTHS[forces] * force)
    return Normalisation(references.nan_to_num(0.0), unit, force)


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
