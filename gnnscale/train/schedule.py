"""The learning rate of every parameter at every step."""

from __future__ import annotations

import math

from torch import nn

from gnnscale.contract.settings import OptimSettings
from gnnscale.models.potential import find_hidden_matrices

BASE_WIDTH = 64  # at which hidden matrices learn at `learning_rate` itself


def learning_rate(step: int, steps: int, optim: OptimSettings) -> float:
    """Return the rate of step number `step` of `steps`: warm-up, stable, linear cool-down (Hu et al., arXiv 2404.06395)."""
    warm = min(1.0, (step + 1) / max(1, optim.warmup))
    cool = min(1.0, (steps - step) / max(1.0, optim.cooldown * steps))
    return optim.learning_rate * warm * cool


def steps_before_decay(steps: int, optim: OptimSettings) -> int:
    """Return the number of steps before the rate begins to fall."""
    return math.floor(steps - optim.cooldown * steps)


def group_parameters(model: nn.Module, width: int, optim: OptimSettings) -> list[dict]:
    """Return two groups: matrices that sum over the width learn at BASE_WIDTH/width of the rate, all else at the rate.

    This is Adam's part of muP (Yang et al. 2022, arXiv 2203.03466, table 8). Muon's steps have the right size at every
    width by themselves.
    """
    summing = find_hidden_matrices(model)
    known = {id(parameter) for parameter in summing}
    other = [parameter for parameter in model.parameters() if id(parameter) not in known]
    muon = optim.optimizer == "muon"
    factor = BASE_WIDTH / width if optim.scale_rate and not muon else 1.0
    return [
        {"params": summing, "rate_factor": factor} | ({"muon": True} if muon else {}),
        {"params": other, "rate_factor": 1.0, "weight_decay": 0.0},
    ]
