"""How long stages take: exact FLOPs at the rate of a site, and what comes to them. Pure, but for the cards of converted data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from gnnscale.architectures.registry import ModelConfig
from gnnscale.contract import files
from gnnscale.contract.dataset_card import DatasetCard, ShardCard
from gnnscale.contract.settings import LeverSettings, TrainSettings
from workflow.config.site import SiteConfig

TAKEN = 40  # steps of `levers` for each that its settings name: some nine ways, three turns, and more to begin with
FORWARD = 0.5  # of the FLOPs of a training step, at most: a third of direct forces', more of gradients
AUDITED = 4000  # structures a second, of 30 atoms


class Size(NamedTuple):
    """Means of a source, from its converted card or else from the estimate of its script."""

    structures: float  # of the training split
    atoms: float  # per structure
    neighbours: float  # per atom


def size(card: DatasetCard, folder: Path, held_out: float) -> Size:
    try:
        train = files.read_model(folder / "card.json", ShardCard).counts["train"]
        return Size(train.structures, train.atoms / train.structures, train.edges / train.atoms)
    except files.BadFile:
        return Size(card.structures * (1 - held_out), card.atoms_per_structure, card.neighbours_per_atom)


def per_structure(sizes: list[Size]) -> tuple[float, float]:
    """Mean atoms and edges."""
    structures = sum(s.structures for s in sizes)
    atoms = sum(s.structures * s.atoms for s in sizes) / structures
    return atoms, sum(s.structures * s.atoms * s.neighbours for s in sizes) / structures


def flops_per_second(site: SiteConfig, ranks: int, precision: str) -> float:
    """Of a training with so many ranks."""
    gpus = site.node.gpus
    if gpus is None:
        return ranks * site.launch.threads_per_rank * site.node.core_gflops * 1e9
    return ranks * gpus.sustained * gpus.peak_tflops.get(precision, gpus.peak_tflops["fp32"]) * 1e12


def train_seconds(settings: TrainSettings, sizes: list[Size], site: SiteConfig, ranks: int = 1) -> float:
    """Of one training, from exact FLOPs and the rate of the site; without a scheduler, on one core."""
    available = sum(s.structures for s in sizes)
    used = min(settings.structures or available, available)
    optim, share, node = settings.optim, used / available, site.node
    atoms = share * sum(s.structures * s.atoms for s in sizes)
    edges = share * sum(s.structures * s.atoms * s.neighbours for s in sizes)
    flops = settings.model.flops(atoms, edges)  # of one epoch
    epochs = optim.passes(flops)
    steps = math.ceil(epochs * used / min(optim.batch, used))
    rate = flops_per_second(site, ranks, optim.precision)
    return node.start_seconds + steps * fixed(settings.model, site) + epochs * flops / rate


def fixed(model: ModelConfig, site: SiteConfig) -> float:
    """Seconds of a step that no size of data changes. Measured of small networks of 2, 3, 6 and 12 layers: 9.1, 10.9, 15.4
    and 21.6 ms."""
    return site.node.step_seconds * (5 + model.depth) / 8


def evaluate_seconds(settings: TrainSettings, sizes: list[Size], held_out: float, site: SiteConfig) -> float:
    """On one rank; `held_out` is the number of structures judged, over that of the training split."""
    atoms = held_out * sum(s.structures * s.atoms for s in sizes)
    edges = held_out * sum(s.structures * s.atoms * s.neighbours for s in sizes)
    rate = flops_per_second(site, 1, settings.optim.precision)
    return site.node.start_seconds + FORWARD * settings.model.flops(atoms, edges) / rate


def lever_seconds(settings: LeverSettings, sizes: list[Size], site: SiteConfig, ranks: int) -> float:
    """Of the stage that takes one step in all ways."""
    atoms, edges = per_structure(sizes)
    flops = settings.model.flops(settings.batch * atoms, settings.batch * edges)
    step = fixed(settings.model, site) + flops / flops_per_second(site, ranks, "fp32")
    return site.node.start_seconds + TAKEN * settings.steps * step


def audit_seconds(sizes: list[Size], site: SiteConfig) -> float:
    return sum(s.structures for s in sizes) / AUDITED + site.node.start_seconds
