"""Rates of learning: over the steps, and over the widths (the coordinate check of muP)."""

import numpy as np
import pytest
import torch

from gnnscale.contract.settings import OptimSettings
from gnnscale.models.registry import build
from gnnscale.train.loss import sum_penalties
from gnnscale.train.muon import BETAS
from gnnscale.train.normalisation import Normalisation
from gnnscale.train.schedule import group_parameters, learning_rate
from tests.support.corpus import TINY
from tests.support.synthetic import random_graph
from tests.support.training import change_settings

WIDTHS, STEPS = (16, 32, 64, 128, 256), 6


def test_the_rate_rises_stays_and_falls():
    optim = OptimSettings(learning_rate=1.0, warmup=10, cooldown=0.4)
    rates = [learning_rate(step, 100, optim) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[60] == 1.0
    assert rates[80] == pytest.approx(0.5) and rates[-1] == pytest.approx(1 / 40)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_in_one_group(optimizer):
    model = build(TINY.model, 2, 12.0)
    groups = group_parameters(model, 8, OptimSettings(optimizer=optimizer))
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())
    assert groups[0]["rate_factor"] == (8.0 if optimizer == "adamw" else 1.0)


def change(forces: str, width: int, optim: OptimSettings, seed: int) -> float:
    """Return how far the scalars of the last layer move in a few steps, rms."""
    torch.manual_seed(seed)
    model = build(change_settings(model={"forces": forces, "width": width, "depth": 3}).model, 1, 12.0)
    optimizer = torch.optim.AdamW(group_parameters(model, width, optim), betas=BETAS, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = optim.learning_rate * group["rate_factor"]
    graphs, labels = random_graph(80, 12)
    normalisation, seen = Normalisation(torch.zeros(1, 119, dtype=torch.float64), 1.0, 1.0), []
    model.backbone.layers[-1].register_forward_hook(lambda _, __, out: seen.append(out[0].detach()))
    for _ in range(STEPS + 1):
        optimizer.zero_grad()
        (sum_penalties(model, normalisation, graphs, labels, optim).sum() / len(labels.forces)).backward()
        optimizer.step()
    return float((seen[-1] - seen[0]).square().mean().sqrt())


def slope(forces: str, optim: OptimSettings) -> float:
    """Return d log(change) / d log(width), which is 0 where a rate serves all widths."""
    changes = [np.mean([change(forces, width, optim, seed) for seed in range(2)]) for width in WIDTHS]
    return float(np.polyfit(np.log(WIDTHS), np.log(changes), 1)[0])


@pytest.mark.slow
@pytest.mark.parametrize("forces", ["gradient", "direct"])
def test_all_widths_move_alike_at_one_rate(forces):
    assert abs(slope(forces, OptimSettings())) < 0.1


@pytest.mark.slow
def test_without_scaled_rates_wide_networks_move_more():
    assert slope("gradient", OptimSettings(scale_rate=False)) > 0.4
