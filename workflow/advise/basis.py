"""The inputs to advice: the fitted laws of a finished study, and the speed of a site."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from gnnscale.architectures.registry import ModelConfig
from gnnscale.contract import files
from gnnscale.contract.errors import BadFile, UserError
from gnnscale.contract.results import StageResult
from gnnscale.contract.scaling_results import Fit, LawFit, Point
from gnnscale.contract.settings import TrainSettings
from gnnscale.contract.stage_spec import StageSpec
from workflow.config import study, study_files, sweeps
from workflow.config.site import SiteConfig
from workflow.plan import cost
from workflow.run_directory import status

JOINT_LAWS = ("Hoffmann", "PurePowers", "EqualPowers", "OverTraining")  # laws that weigh model against data
RUN_AGAIN = "`run` the study again: only what is out of date is made again"


class LossLaw(NamedTuple):
    """A fitted law, L = E + A/N^alpha + B/D^beta."""

    e: float
    a: float
    alpha: float
    b: float
    beta: float

    def loss(self, n: float, d: float) -> float:
        return self.e + self.a / n**self.alpha + self.b / d**self.beta


class TrainingSpeed(NamedTuple):
    """FLOP/s of one rank in training."""

    flops: float
    origin: str
    start: float | None  # seconds before the first step, beside the rate; None = measured: the rate includes everything


class AdviceBasis(NamedTuple):
    """Inputs to the advice: fitted laws and the site's measured speed."""

    entry: LawFit
    confidence: float
    law: LossLaw
    replicas: list[LossLaw]
    points: list[Point]  # of the law
    settings: TrainSettings  # of the largest of them
    sources: int
    epochs: float
    atoms: float  # per structure
    neighbours: float  # per atom
    site: SiteConfig
    speed: TrainingSpeed


def read_basis(root: Path, target: str, site: SiteConfig, name: str) -> AdviceBasis:
    """Read the files at the top of a run directory; raise if its runs do not determine a law of model and data."""
    fit, rows = read_fit(root)
    entry = choose_law(root, fit, target)
    points = [point for point in rows if point.run in set(entry.points)]
    _, finished = study_files.load(str(root / "study.yaml"))
    largest = max(points, key=lambda point: point.flops)
    settings = settings_of_point(root, finished, largest)
    return AdviceBasis(
        entry,
        fit.confidence,
        to_law({name: estimate.value for name, estimate in entry.estimates.items()}),
        [to_law(dict(zip(list(entry.estimates), row))) for row in entry.replicas],
        points,
        settings,
        len(settings.sources or finished.data),
        largest.epochs,
        largest.atoms / largest.structures,
        count_neighbours(settings.model, largest),
        site,
        find_speed(root, site, name, settings.optim.precision, points),
    )


def read_fit(root: Path) -> tuple[Fit, list[Point]]:
    """Read the fitted laws of a run directory and the points of all its runs."""
    if not (root / "fit.json").exists():
        raise UserError(
            f"{root}: no fit.json, so there is no law yet", "`run` the study first; `status` shows the progress"
        )
    try:
        fit = files.read_model(root / "fit.json", Fit)
        with open(root / "points.csv", newline="") as file:
            return fit, [Point.model_validate(row) for row in csv.DictReader(file)]
    except BadFile as error:
        raise UserError(error.message, RUN_AGAIN) from None
    except ValidationError as error:
        first = error.errors()[0]
        column = ".".join(map(str, first["loc"]))
        raise UserError(f"{root / 'points.csv'}: column {column}: {first['msg'].lower()}", RUN_AGAIN) from None


def choose_law(root: Path, fit: Fit, target: str) -> LawFit:
    """Return the law that was chosen for the target, if it weighs model against data."""
    entry = next((law for law in fit.laws if law.chosen and law.target == target), None)
    if entry is not None and entry.law in JOINT_LAWS:
        return entry
    joint_law = next((law for law in fit.laws if law.law == "Hoffmann" and law.target == target), None)
    why = "; ".join(joint_law.notes[:3]) if joint_law else f"no law was fitted to {target}"
    alone = f" They determine only {entry.formula}, which does not weigh model against data." if entry else ""
    raise UserError(
        f"{root}: the runs do not determine how {target} depends on model and data together: {why}.{alone}",
        "give the study more model sizes and data sizes, further apart: at least three of each",
    )


def settings_of_point(root: Path, finished: study.Study, point: Point) -> TrainSettings:
    """Return the settings of the run that made a point, with all structures and the epochs that it really had."""
    settings = next((run.settings for run in sweeps.expand_runs(finished) if run.name == point.run), None)
    if settings is None or settings.model.label != point.model:
        difference = "has no such run" if settings is None else f"has {settings.model.label} there"
        raise UserError(
            f"{root}: the laws are from {point.run} of {point.model}, but study.yaml {difference}: the study has changed since",
            RUN_AGAIN,
        )
    optim = settings.optim.model_copy(update={"epochs": point.epochs})
    return settings.model_copy(update={"structures": None, "optim": optim})


def to_law(values: dict[str, float]) -> LossLaw:
    """Return a law by its parameters; a law with one exponent, gamma, has it for model and data."""
    alpha, beta = (values[name] if name in values else values["gamma"] for name in ("alpha", "beta"))
    return LossLaw(values.get("E", 0.0), values["A"], alpha, values["B"], beta)


def count_neighbours(model: ModelConfig, point: Point) -> float:
    """Return the edges per atom of a run, from its FLOPs, which are linear in atoms and edges."""
    none, one = model.flops(point.atoms_seen, 0), model.flops(point.atoms_seen, point.atoms_seen)
    return (point.flops - none) / (one - none)


def find_speed(
    root: Path, site: SiteConfig, name: str, precision: Literal["fp32", "bf16"], points: list[Point]
) -> TrainingSpeed:
    """Return the speed of the study's longest training on this site, or else the one that the site's file assumes."""
    plan = status.read_plan(root) if (root / "plan.json").exists() else None
    folders = {s.id: root / s.folder for s in plan.stages} if plan is not None and plan.site == name else {}
    for point in sorted(points, key=lambda point: -point.flops):
        folder = folders.get(f"train/{point.run.split('/')[-1]}")
        if folder is not None and (speed := measured_speed(folder, point)) is not None:
            return speed
    assumed = cost.flops_per_second(site, 1, precision)
    return TrainingSpeed(assumed, "assumed by the site's file", site.node.start_seconds)


def measured_speed(folder: Path, point: Point) -> TrainingSpeed | None:
    """Return the speed of one training; None if its files are gone or it took its first steps over from another."""
    try:
        result = files.read_model(folder / "result.json", StageResult)
        runtime = files.read_model(folder / "spec.json", StageSpec).runtime
    except BadFile:
        return None
    if result.seconds <= 0 or runtime.shorter:
        return None
    where = f"{runtime.ranks} ranks" if runtime.ranks > 1 else "one rank"
    return TrainingSpeed(point.flops / result.seconds / runtime.ranks, f"measured, {point.run} on {where}", None)
