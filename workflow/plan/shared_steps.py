"""Finds trainings that can share their first steps with a shorter one, as they differ only in length. Pure."""

from __future__ import annotations

from collections import defaultdict

from gnnscale.contract.settings import TrainSettings


def shorter_runs(runs: dict[str, tuple[TrainSettings, float]]) -> dict[str, tuple[str, ...]]:
    """Return, for each id of (settings, cost), the runs that take the same first steps and end earlier, longest first.

    Up to the decay of its learning rate, a shorter run takes the same steps as a longer one.
    """
    alike = defaultdict(list)
    for id, (settings, cost) in runs.items():
        optim = settings.optim.model_copy(update={"epochs": 1.0})
        if optim.cooldown < 1:
            alike[settings.model_copy(update={"optim": optim}).model_dump_json()].append((cost, id))
    shorter: dict[str, tuple[str, ...]] = dict.fromkeys(runs, ())
    for group in alike.values():
        for cost, id in group:
            shorter[id] = tuple(other for other_cost, other in sorted(group, reverse=True) if other_cost < cost)
    return shorter


def shared_cost(cost: float, settings: TrainSettings, costs: list[float]) -> float:
    """Return the part of a training's cost that the longest of the shorter trainings has paid."""
    return min(cost, (1 - settings.optim.cooldown) * max(costs, default=0.0))
