"""Everything that a report is made of, read from the directories of the stages that it was given."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gnnscale import files
from gnnscale.scaling import points as rows
from gnnscale.specs import Evaluation, Fit, LawFit, Metrics, Point, ReportSettings, ShardCard, StageResult, StageSpec

TARGETS = {  # field of Point -> (name, unit, factor from the field's unit)
    "loss": ("Loss", "dimensionless", 1.0),
    "energy_mae": ("Energy MAE", "meV/atom", 1e3),
    "force_mae": ("Force MAE", "meV/Å", 1e3),
}


class Study(NamedTuple):
    """Runs that failed are simply not here; runs are known by the name after the stage's slash."""

    settings: ReportSettings
    points: list[Point]
    fit: Fit
    evaluations: dict[str, Evaluation]
    metrics: dict[str, list[Metrics]]
    cards: dict[str, ShardCard]
    results: dict[str, StageResult]  # by stage id
    ranks: dict[str, int]  # of each training, each with a GPU of its own where there are GPUs

    @property
    def spent(self) -> dict[str, float]:
        """Seconds of a training times its ranks, by run."""
        return {run: n * self.results[f"train/{run}"].seconds for run, n in self.ranks.items()}

    def joint(self, target: str) -> LawFit | None:
        return next((law for law in self.fit.laws if law.law == "Hoffmann" and law.target == target), None)

    def chosen(self, target: str) -> LawFit | None:
        """The law to draw: the joint one, a part of it, or none where the points determine none."""
        return next((law for law in self.fit.laws if law.chosen and law.target == target), None)

    def targets(self) -> list[str]:
        return [t for t in TARGETS if self.joint(t)] or list(TARGETS)

    def grid(self) -> list[Point]:
        """The points that the joint law was fitted to, by (N, D)."""
        law = self.joint("loss") or next((law for law in self.fit.laws if law.law == "Hoffmann"), None)
        runs = set(law.points) if law else set()
        found = [p for p in self.points if p.run in runs and sound(p)]
        one = {(p.body_parameters, p.structures): p for p in sorted(found, key=lambda p: -p.seed)}  # of several seeds
        return sorted(one.values(), key=lambda p: (p.body_parameters, p.structures))


def sound(p: Point) -> bool:
    """Whether a run can be drawn on logarithmic axes."""
    return not p.diverged and all(0 < getattr(p, target) < float("inf") for target in TARGETS)


def read(needs: dict[str, Path], settings: ReportSettings) -> Study:
    scaling = next(path for need, path in needs.items() if need.startswith("scaling/"))
    evaluations, metrics, cards, ranks = {}, {}, {}, {}
    for need, path in sorted(needs.items()):
        stage, name = need.split("/", 1)
        if stage == "evaluate":
            evaluations[name] = files.read_model(path / "errors.json", Evaluation)
        elif stage == "train" and (path / "metrics.jsonl").exists():
            lines = (path / "metrics.jsonl").read_text().splitlines()
            metrics[name] = [Metrics.model_validate_json(line) for line in lines if line.strip()]
        elif stage == "convert":
            cards[name] = files.read_model(path / "card.json", ShardCard)
        if stage == "train":
            spec = path / "spec.json"
            ranks[name] = files.read_model(spec, StageSpec).runtime.ranks if spec.exists() else 1
    return Study(
        settings=settings,
        points=rows.read(scaling / "points.csv"),
        fit=files.read_model(scaling / "fit.json", Fit),
        evaluations=evaluations,
        metrics=metrics,
        cards=cards,
        results={need: files.read_model(path / "result.json", StageResult) for need, path in sorted(needs.items())},
        ranks=ranks,
    )


def short(name: str) -> str:
    """The name of a run, whether or not it came with its stage."""
    return name.split("/", 1)[-1]
