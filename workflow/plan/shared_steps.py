"""Trainings that differ in length alone take the same steps until the shorter one's rate falls: who may share them. Pure."""

from __future__ import annotations

from collections import defaultdict

from gnnscale.contract.settings import TrainSettings


def shorter(runs: dict[str, tuple[TrainSettings, float]]) -> dict[str, tuple[str, ...]]:
    """For each id, of (settings, cost), those that go the same way and end before it; the longest of them first."""
    same = defaultdict(list)
    for id, (settings, cost) in runs.items():
        optim = settings.optim.model_copy(update={"epochs": 1.0})
        if optim.cooldown < 1:
            same[settings.model_copy(update={"optim": optim}).model_dump_json()].append((cost, id))
    found = dict.fromkeys(runs, ())
    for group in same.values():
        for cost, id in group:
            found[id] = tuple(other for less, other in sorted(group, reverse=True) if less < cost)
    return found


def saved(cost: float, settings: TrainSettings, costs: list[float]) -> float:
    """What of a training's cost has been paid by the longest of the shorter ones."""
    return min(cost, (1 - settings.optim.cooldown) * max(costs, default=0.0))
