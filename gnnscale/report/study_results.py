"""The results of a study that a report needs, read from the directories of its stages."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from gnnscale.contract import files
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.contract.results import Evaluation, LeverComparison, Metrics, StageResult
from gnnscale.contract.scaling_results import Fit, LawFit, Point
from gnnscale.contract.settings import ReportSettings
from gnnscale.contract.stage_spec import Runtime, StageSpec
from gnnscale.scaling.points import read_points

TARGETS = {  # field of Point -> (name, unit, factor from the field's unit)
    "loss": ("Loss", "dimensionless", 1.0),
    "energy_mae": ("Energy MAE", "meV/atom", 1e3),
    "force_mae": ("Force MAE", "meV/Å", 1e3),
}


class StudyResults(NamedTuple):
    """All results of a study; failed runs are absent, and a run has the name after the slash of its stage."""

    settings: ReportSettings
    points: list[Point]
    fit: Fit
    evaluations: dict[str, Evaluation]
    metrics: dict[str, list[Metrics]]
    cards: dict[str, ShardCard]
    results: dict[str, StageResult]  # by stage id
    runtimes: dict[str, Runtime]  # of each training, by run
    levers: LeverComparison | None = None

    @property
    def spent(self) -> dict[str, float]:
        """Seconds of each training times its ranks, by run; a rank has one GPU if there are GPUs."""
        return {run: how.ranks * self.results[f"train/{run}"].seconds for run, how in self.runtimes.items()}

    def joint_law(self, target: str) -> LawFit | None:
        return next((law for law in self.fit.laws if law.law == "Hoffmann" and law.target == target), None)

    def chosen_law(self, target: str) -> LawFit | None:
        """Return the selected law: the joint one, a part of it, or none if the points determine none."""
        return next((law for law in self.fit.laws if law.chosen and law.target == target), None)

    def targets(self) -> list[str]:
        return [t for t in TARGETS if self.joint_law(t)] or list(TARGETS)

    def grid_runs(self) -> list[Point]:
        """Return the points that the joint law was fitted to, of all seeds."""
        law = self.joint_law("loss") or next((law for law in self.fit.laws if law.law == "Hoffmann"), None)
        runs = set(law.points) if law else set()
        return [p for p in self.points if p.run in runs and is_drawable(p)]

    def grid_points(self) -> list[Point]:
        """Return one point for each (N, D) of the grid: the geometric mean over seeds, named after the first."""
        cells: dict[tuple[int, int], list[Point]] = defaultdict(list)
        for p in sorted(self.grid_runs(), key=lambda p: p.seed):
            cells[p.body_parameters, p.structures].append(p)
        return [average_points(cells[cell]) for cell in sorted(cells)]


def average_points(points: list[Point]) -> Point:
    values = {t: [getattr(p, t) for p in points] for t in TARGETS}
    return points[0].model_copy(
        update={t: math.exp(fmean(map(math.log, v))) for t, v in values.items() if min(v) == min(v)}
    )


def is_drawable(p: Point) -> bool:
    """Return whether logarithmic axes can show a run; an unknown target is NaN and does not count."""
    return (
        not p.diverged
        and p.loss == p.loss
        and not any(not 0 < getattr(p, t) < float("inf") for t in TARGETS if is_known(p, t))
    )


def is_known(p: Point, target: str) -> bool:
    return getattr(p, target) == getattr(p, target)


def read_study(needs: dict[str, Path], settings: ReportSettings) -> StudyResults:
    scaling = next(path for need, path in needs.items() if need.startswith("scaling/"))
    evaluations, metrics, cards, runtimes, levers = {}, {}, {}, {}, None
    for need, path in sorted(needs.items()):
        stage, name = need.split("/", 1)
        if stage == "evaluate":
            evaluations[name] = files.read_model(path / "errors.json", Evaluation)
        elif stage == "train" and (path / "metrics.jsonl").exists():
            lines = (path / "metrics.jsonl").read_text().splitlines()
            metrics[name] = [Metrics.model_validate_json(line) for line in lines if line.strip()]
        elif stage == "convert":
            cards[name] = files.read_model(path / "card.json", ShardCard)
        elif stage == "memory_levers":
            levers = files.read_model(path / "levers.json", LeverComparison)
        if stage == "train":
            spec = path / "spec.json"
            runtimes[name] = files.read_model(spec, StageSpec).runtime if spec.exists() else Runtime()
    return StudyResults(
        settings=settings,
        points=read_points(scaling / "points.csv"),
        fit=files.read_model(scaling / "fit.json", Fit),
        evaluations=evaluations,
        metrics=metrics,
        cards=cards,
        results={need: files.read_model(path / "result.json", StageResult) for need, path in sorted(needs.items())},
        runtimes=runtimes,
        levers=levers,
    )


def run_name(name: str) -> str:
    """Return the name of a run without its stage."""
    return name.split("/", 1)[-1]
