"""What to train with a budget of GPU-hours: from the laws of a finished study and the speed of a site, in pure Python."""

from __future__ import annotations

import csv
import math
from bisect import bisect_left
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from gnnscale.architectures.registry import ModelConfig
from gnnscale.contract import files
from gnnscale.contract.errors import Problem
from gnnscale.contract.results import StageResult
from gnnscale.contract.scaling_results import Fit, LawFit, Point
from gnnscale.contract.settings import TrainSettings
from gnnscale.contract.stage_spec import StageSpec
from workflow.config import capacity, study
from workflow.config.site import SiteConfig
from workflow.plan import cost
from workflow.plan.memory_fit import Levers, choose
from workflow.run_directory import status

FAR = 10.0  # times the compute of the largest run: beyond, advice is a direction and no plan
ENOUGH = 0.01  # of the least loss: a smaller model that comes so near is taken, where more hours find no more data
MANY = 1e9  # structures, beside which a training's start is nothing
MOST_HOURS = 1e12  # ten thousand years of the largest machine that there is; numbers far above overflow
HOLDS = 0.05  # rms residual of log L, as in gnnscale/scaling/fitting/identifiability.py
JOINT = ("Hoffmann", "PurePowers", "EqualPowers", "OverTraining")  # laws by which model and data can be weighed
WIDTHS = sorted({max(4, 8 * round(2 ** (k / 48) / 8)) for k in range(48 * 5, 48 * 17)} | set(range(4, 64)))


class Law(NamedTuple):
    """L = E + A/N^alpha + B/D^beta"""

    e: float
    a: float
    alpha: float
    b: float
    beta: float

    def loss(self, n: float, d: float) -> float:
        return self.e + self.a / n**self.alpha + self.b / d**self.beta


class Speed(NamedTuple):
    """FLOP/s of one rank in training."""

    flops: float
    origin: str
    start: float | None  # seconds before the first step, which comes to the rate; None = measured: all is in the rate


class Basis(NamedTuple):
    """Of a finished study and of a site, all that advice rests on."""

    entry: LawFit
    confidence: float
    law: Law
    replicas: list[Law]
    points: list[Point]  # of the law
    settings: TrainSettings  # of the largest of them
    sources: int
    epochs: float
    atoms: float  # per structure
    neighbours: float  # per atom
    site: SiteConfig
    speed: Speed


class Rung(NamedTuple):
    """A width that could be trained."""

    model: ModelConfig
    n: int
    seconds: float  # of one unique structure of many, over all epochs


class Ladder(NamedTuple):
    """The widths that fit into memory on so many ranks, the narrowest first."""

    ranks: int
    hours: float  # that a training may take on them, where it could have more
    rungs: list[Rung]
    top: str  # why there is none wider


class Choice(NamedTuple):
    """The best that a budget buys."""

    rung: Rung
    d: float
    loss: float


class Range(NamedTuple):
    value: float
    low: float | None
    high: float | None


# ----------------------------------------------------------------------------------------------------- what is known
def basis(root: Path, target: str, site: SiteConfig, name: str) -> Basis:
    """Read from the files at the top of a run directory; what they do not determine is refused in words."""
    if not (root / "fit.json").exists():
        raise Problem(
            f"{root}: no fit.json, so there is no law yet", "`run` the study first; `status` shows how far it is"
        )
    try:
        fit = files.read_model(root / "fit.json", Fit)
        with open(root / "points.csv", newline="") as file:
            rows = [Point.model_validate(row) for row in csv.DictReader(file)]
    except files.BadFile as error:
        raise Problem(str(error), "`run` the study again: only what is old is made anew") from None
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{root / 'points.csv'}: column {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
        raise Problem(what, "`run` the study again: only what is old is made anew") from None
    entry = next((law for law in fit.laws if law.chosen and law.target == target), None)
    if entry is None or entry.law not in JOINT:
        joint = next((law for law in fit.laws if law.law == "Hoffmann" and law.target == target), None)
        why = "; ".join(joint.notes[:3]) if joint else f"no law was fitted to {target}"
        alone = f" What they determine is {entry.formula}, which weighs no model against data." if entry else ""
        raise Problem(
            f"{root}: the runs do not determine how {target} depends on model and data together: {why}.{alone}",
            "give the study more model sizes and data sizes, further apart: three of each and more",
        )
    used = set(entry.points)
    points = [p for p in rows if p.run in used]
    _, asked = study.load(str(root / "study.yaml"))
    largest = max(points, key=lambda p: p.flops)
    settings = settings_of(root, asked, largest)
    laws = [as_law(entry.law, dict(zip(list(entry.estimates), row))) for row in entry.replicas]
    return Basis(
        entry,
        fit.confidence,
        as_law(entry.law, {name: e.value for name, e in entry.estimates.items()}),
        laws,
        points,
        settings,
        len(asked.data),
        largest.epochs,
        largest.atoms / largest.structures,
        neighbours(settings.model, largest),
        site,
        speed(root, site, name, settings.optim.precision, points),
    )


def settings_of(root: Path, asked: study.Study, point: Point) -> TrainSettings:
    """Of the run that made a point, but that all structures are taken, and epochs are as they were."""
    settings = next((run.settings for run in study.runs(asked) if run.name == point.run), None)
    if settings is None or settings.model.label != point.model:
        there = "has no such run" if settings is None else f"has {settings.model.label} there"
        raise Problem(
            f"{root}: the laws are from {point.run} of {point.model}, but study.yaml {there}: the study was changed since",
            "`run` the study again: only what is old is made anew",
        )
    optim = settings.optim.model_copy(update={"epochs": point.epochs})
    return settings.model_copy(update={"structures": None, "optim": optim})


def as_law(name: str, values: dict[str, float]) -> Law:
    alpha, beta = values.get("alpha", values.get("gamma")), values.get("beta", values.get("gamma"))
    return Law(values.get("E", 0.0), values["A"], alpha, values["B"], beta)


def neighbours(model: ModelConfig, p: Point) -> float:
    """Edges per atom: FLOPs are a count that is linear in atoms and edges, so that of a run tells its edges."""
    none, one = model.flops(p.atoms_seen, 0), model.flops(p.atoms_seen, p.atoms_seen)
    return (p.flops - none) / (one - none)


def speed(root: Path, site: SiteConfig, name: str, precision: str, points: list[Point]) -> Speed:
    """As measured by the longest training of the study, if it ran on this site, else as the site's file assumes."""
    asked = status.read_plan(root) if (root / "plan.json").exists() else None
    stages = {s.id: s for s in asked.stages} if asked is not None and asked.site == name else {}
    for point in sorted(points, key=lambda p: -p.flops):
        stage = stages.get(f"train/{point.run.split('/')[-1]}")
        try:
            result = files.read_model(root / stage.folder / "result.json", StageResult) if stage else None
            runtime = files.read_model(root / stage.folder / "spec.json", StageSpec).runtime if stage else None
        except files.BadFile:
            continue
        if result and result.seconds > 0 and not runtime.shorter:  # or the seconds of a part of its steps are another's
            where = f"{runtime.ranks} ranks" if runtime.ranks > 1 else "one rank"
            return Speed(point.flops / result.seconds / runtime.ranks, f"measured, {point.run} on {where}", None)
    return Speed(cost.flops_per_second(site, 1, precision), "assumed by the site's file", site.node.start_seconds)


# ------------------------------------------------------------------------------------------------------ what is best
def flops(model: ModelConfig, d: float, known: Basis) -> float:
    """Of a training on `d` unique structures, over all epochs."""
    return known.epochs * model.flops(d * known.atoms, d * known.atoms * known.neighbours)


def seconds(model: ModelConfig, d: float, ranks: int, known: Basis) -> float:
    """Of the same on so many ranks; where the speed was not measured as `plan` estimates them."""
    if known.speed.start is None:
        return flops(model, d, known) / known.speed.flops / ranks
    settings = known.settings.model_copy(update={"model": model})
    return cost.train_seconds(settings, [cost.Size(d, known.atoms, known.neighbours)], known.site, ranks)


def levers(model: ModelConfig, ranks: int, known: Basis) -> Levers:
    settings = known.settings.model_copy(update={"model": model})
    return choose(settings, known.sources, known.atoms, known.atoms * known.neighbours, known.site, ranks)


def ranks_of(known: Basis) -> list[int]:
    """That a training may have, from few to many; no more than structures in a batch, as `plan` has it."""
    few, *more = capacity.ranks(known.site)
    return [few, *(ranks for ranks in more if ranks <= known.settings.optim.batch)]


def ladders(known: Basis) -> list[Ladder]:
    """One for each number of ranks on which anything fits into memory."""
    models, made = [known.settings.model.model_copy(update={"width": width}) for width in WIDTHS], []
    allowed = ranks_of(known)
    for ranks in allowed:
        fit = bisect_left(models, True, key=lambda model: bool(levers(model, ranks, known).refusal))
        rungs = [
            Rung(model, model.body_parameters(), seconds(model, MANY, ranks, known) / MANY) for model in models[:fit]
        ]
        if rungs:
            end = "looked at" if fit == len(models) else "that fits into memory"
            longest = math.inf if ranks == allowed[-1] else 0.99 * known.site.train.hours  # steps are whole
            made.append(Ladder(ranks, longest, rungs, end))
    if not made:
        raise Problem(f"not even the narrowest can be trained there: {levers(models[0], ranks, known).refusal}")
    return made


def best(law: Law, ladder: Ladder, hours: float, most: float | None, known: Basis) -> Choice | None:
    """The width of least loss if all hours go into one training; `most`: structures that there are. None: too few hours."""
    choices, time = [], 3600 * min(hours / ladder.ranks, ladder.hours)
    for rung in ladder.rungs:
        d = (time - (known.speed.start or 0)) / rung.seconds
        if d >= known.settings.optim.batch:
            d = min(d, most or d)
            choices.append(Choice(rung, d, law.loss(rung.n, d)))
    least = min(choices, key=lambda c: c.loss, default=None)
    if least is None or least.d != most:
        return least
    return next(c for c in choices if c.d == most and c.loss <= (1 + ENOUGH) * least.loss)


def chosen(made: list[Ladder], hours: float, most: float | None, known: Basis) -> tuple[Choice, Ladder] | None:
    """The best over all numbers of ranks; of equals on the fewest."""
    found = [(best(known.law, ladder, hours, most, known), ladder) for ladder in made]
    return min((pair for pair in found if pair[0]), key=lambda pair: pair[0].loss, default=None)


def job(model: ModelConfig, d: float, known: Basis) -> tuple[int, float, Levers]:
    """Ranks, seconds, and how it fits: on the fewest ranks on which it fits and ends in time, as `plan` has it."""
    for ranks in ranks_of(known):
        fits, time = levers(model, ranks, known), seconds(model, d, ranks, known)
        if not fits.refusal and time <= 3600 * known.site.train.hours:
            break
    return ranks, time, fits


def hours_for(wanted: float, made: list[Ladder], hours: float, most: float | None, known: Basis) -> float:
    """Which buy a best training of so many FLOPs; less than `hours`, which buy more."""
    low, high = 1e-9, hours
    for _ in range(20):
        middle = math.sqrt(low * high)
        found = chosen(made, middle, most, known)
        enough = found is not None and flops(found[0].rung.model, found[0].d, known) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return high


def ranged(value: float, sample: list[float], confidence: float) -> Range:
    if len(sample) < 20:
        return Range(value, None, None)
    ordered, last = sorted(sample), len(sample) - 1
    low, high = (ordered[round(last * share)] for share in ((1 - confidence) / 2, (1 + confidence) / 2))
    return Range(value, low, high)


def advice(root: Path, site: SiteConfig, name: str, hours: float, target: str, most: float | None) -> dict[str, Any]:
    """Everything that is said, as numbers."""
    if not 0 < hours < MOST_HOURS:
        raise Problem(f"--gpu-hours: found {hours:g}, expected more than 0 and less than {MOST_HOURS:g}")
    if most is not None and not 1 <= most < math.inf:
        raise Problem(f"--structures: found {most:g}, expected 1 or more")
    known = basis(root, target, site, name)
    law, confidence, made = known.law, known.confidence, ladders(known)
    found = chosen(made, hours, most, known)
    if found is None:
        raise Problem("the budget does not pay for the smallest model and one batch", "give more --gpu-hours")
    ((model, n, _), d, loss), ladder = found
    others = [best(each, ladder, hours, most, known) for each in known.replicas]
    sizes = ranged(n, [o.rung.n for o in others], confidence)
    limited, ends = d == most, {ladder.rungs[0].n: "narrowest looked at", ladder.rungs[-1].n: f"widest {ladder.top}"}
    if set(sizes) & set(ends):  # where the looking ends is no end of an interval
        sizes = Range(n, None, None)
    data = Range(d, None, None) if limited or sizes.low is None else ranged(d, [o.d for o in others], confidence)
    ranks, time, fits = job(model, d, known)
    spent, largest = flops(model, d, known), max(p.flops for p in known.points)
    twice = {what: 1 - law.loss(n * k, d * m) / loss for what, k, m in (("parameters", 2, 1), ("data", 1, 2))}
    twice["hours"] = 1 - chosen(made, 2 * hours, most, known)[0].loss / loss
    return {
        "formula": known.entry.formula,
        "target": target,
        "log_rms": known.entry.log_rms,
        "confidence": confidence,
        "gpu_hours": hours,
        "flops": spent,
        "flops_per_second": known.speed.flops,
        "speed": known.speed.origin,
        "fixed": 1 - spent / known.speed.flops / ranks / time,
        "model": model.label,
        "depth": model.depth,
        "width": model.width,
        "end": ends.get(n, ""),
        "parameters": sizes._asdict(),
        "structures": data._asdict(),
        "epochs": known.epochs,
        "atoms": d * known.atoms,
        "atoms_seen": d * known.atoms * known.epochs,
        "loss": ranged(loss, [each.loss(n, d) for each in known.replicas], confidence)._asdict(),  # of this training
        "floor": law.e,
        "of_model": law.a / n**law.alpha,
        "of_data": law.b / d**law.beta,
        "nodes": ranks // site.ranks_per_node if site.batch else 1,
        "ranks": ranks,
        "hours": time / 3600,
        "limited": limited,
        "memory": fits.said,
        "twice": twice,
        "beyond": {
            "parameters": n / max(p.body_parameters for p in known.points),
            "structures": d / max(p.structures for p in known.points),
            "flops": spent / largest,
        },
        "next_hours": hours_for(FAR * largest, made, hours, most, known) if spent > FAR * largest else None,
        "runs": len(known.points),
    }


# ------------------------------------------------------------------------------------------------------------ in words
