"""Estimates how long stages take: exact FLOPs at a site's rate plus fixed costs. Reads only cards of converted data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, NamedTuple

from gnnscale.architectures.registry import ModelConfig
from gnnscale.contract import errors, files
from gnnscale.contract.dataset_card import DatasetCard, ShardCard, SplitName
from gnnscale.contract.settings import LeverSettings, TrainSettings
from workflow.config.site import SiteConfig

# Steps of a comparison of levers for each that its settings name: about nine choices, three turns, and steps to warm up.
STEPS_PER_LEVER_STEP = 40
FORWARD_SHARE = 0.5  # of the FLOPs of a training step, at most: a third for direct forces, more for gradients
AUDITED_PER_SECOND = 4000  # structures of 30 atoms


class SourceSize(NamedTuple):
    """Number of structures and mean sizes of a source."""

    structures: float  # of the training split
    atoms: float  # per structure
    neighbours: float  # per atom


def source_size(card: DatasetCard, folder: Path, share: float, split: SplitName = "train") -> SourceSize:
    """Return the size of a split of a source from its converted data, or else its expected share from the script's card."""
    try:
        found = files.read_model(folder / "card.json", ShardCard).counts[split]
        return SourceSize(found.structures, found.atoms / found.structures, found.edges / found.atoms)
    except (errors.BadFile, ZeroDivisionError):
        return SourceSize(card.structures * share, card.atoms_per_structure, card.neighbours_per_atom)


def mean_structure(sizes: list[SourceSize]) -> tuple[float, float]:
    """Return the mean numbers of atoms and edges of a structure."""
    structures = sum(s.structures for s in sizes)
    atoms = sum(s.structures * s.atoms for s in sizes) / structures
    return atoms, sum(s.structures * s.atoms * s.neighbours for s in sizes) / structures


def flops_per_second(site: SiteConfig, ranks: int, precision: Literal["fp32", "bf16"]) -> float:
    """Return the FLOP/s of a training on `ranks` ranks."""
    gpus = site.node.gpus
    if gpus is None:
        return ranks * site.launch.threads_per_rank * site.node.core_gflops * 1e9
    return ranks * gpus.sustained * gpus.peak_tflops.get(precision, gpus.peak_tflops["fp32"]) * 1e12


def train_seconds(settings: TrainSettings, sizes: list[SourceSize], site: SiteConfig, ranks: int = 1) -> float:
    """Estimate the seconds of one training from exact FLOPs and the rate of the site."""
    available = sum(s.structures for s in sizes)
    used = min(settings.structures or available, available)
    optim, share, node = settings.optim, used / available, site.node
    atoms = share * sum(s.structures * s.atoms for s in sizes)
    edges = share * sum(s.structures * s.atoms * s.neighbours for s in sizes)
    flops = settings.model.flops(atoms, edges)  # of one epoch
    epochs = optim.count_epochs(flops)
    steps = math.ceil(epochs * used / min(optim.batch, used))
    rate = flops_per_second(site, ranks, optim.precision)
    return node.start_seconds + steps * fixed_step_seconds(settings.model, site) + epochs * flops / rate


def fixed_step_seconds(model: ModelConfig, site: SiteConfig) -> float:
    """Return the seconds of a step that do not depend on its data.

    Steps of small networks of 2, 3, 6 and 12 layers were measured: 9.1, 10.9, 15.4 and 21.6 ms.
    """
    return site.node.step_seconds * (5 + model.depth) / 8


def evaluate_seconds(settings: TrainSettings, held_out: list[SourceSize], site: SiteConfig) -> float:
    """Estimate the seconds of an evaluation on what is held out."""
    atoms = sum(s.structures * s.atoms for s in held_out)
    edges = sum(s.structures * s.atoms * s.neighbours for s in held_out)
    rate = flops_per_second(site, 1, settings.optim.precision)
    return site.node.start_seconds + FORWARD_SHARE * settings.model.flops(atoms, edges) / rate


def lever_seconds(settings: LeverSettings, sizes: list[SourceSize], site: SiteConfig, ranks: int) -> float:
    """Estimate the seconds of the stage `memory_levers`, which takes steps with every choice of levers."""
    atoms, edges = mean_structure(sizes)
    flops = settings.model.flops(settings.batch * atoms, settings.batch * edges)
    step = fixed_step_seconds(settings.model, site) + flops / flops_per_second(site, ranks, "fp32")
    return site.node.start_seconds + STEPS_PER_LEVER_STEP * settings.steps * step


def audit_seconds(sizes: list[SourceSize], site: SiteConfig) -> float:
    return sum(s.structures for s in sizes) / AUDITED_PER_SECOND + site.node.start_seconds
