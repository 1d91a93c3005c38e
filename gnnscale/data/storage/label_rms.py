"""The size of the labels of several sources together, in which errors are told and scales are chosen."""

from __future__ import annotations

import math
from typing import NamedTuple

from gnnscale.contract.dataset_card import ShardCard


class LabelRms(NamedTuple):
    """Root mean squares over the training splits of all sources."""

    energy: float  # eV/atom, after the references are subtracted
    force: float  # eV/Angstrom per component


def pool_label_rms(cards: tuple[ShardCard, ...]) -> LabelRms:
    """Pool the rms of all sources from their cards; NaN there means no such label."""
    energies = [(card.counts["train"].structures, card.energy_rms) for card in cards]
    forces = [(card.counts["train"].atoms, card.force_rms) for card in cards]
    return LabelRms(mean_rms(energies), mean_rms(forces))


def mean_rms(counted: list[tuple[int, float]]) -> float:
    """Return the rms over all sources from (count, rms) of each."""
    known = [(count, rms) for count, rms in counted if count and math.isfinite(rms)]
    square = sum(count * rms**2 for count, rms in known) / max(1, sum(count for count, _ in known))
    return math.sqrt(square) or 1.0  # no label, or all of them 0: any scale will do
