"""What to train with a budget of GPU-hours: from the laws of a finished study and the speed of a site, in pure Python."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from gnnscale import files
from gnnscale.specs import Fit, LawFit, ModelConfig, Point, StageResult, StageSpec, TrainSettings
from workflow import estimates, status, study
from workflow.levers import choose
from workflow.siteconfig import SiteConfig
from workflow.yamlfile import Problem

FAR = 10.0  # times the compute of the largest run: beyond, advice is a direction and no plan
HOLDS = 0.05  # rms residual of log L, as in gnnscale/scaling/findings.py
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


class Basis(NamedTuple):
    """Of a finished study, all that advice rests on."""

    entry: LawFit
    confidence: float
    law: Law
    replicas: list[Law]
    points: list[Point]  # of the law
    settings: TrainSettings
    sources: int
    epochs: float
    atoms: float  # per structure
    neighbours: float  # per atom


class Speed(NamedTuple):
    """FLOP/s of one rank in training."""

    flops: float
    origin: str


class Rung(NamedTuple):
    """A width that could be trained."""

    model: ModelConfig
    n: int
    cost: float  # FLOPs of one unique structure, over all epochs


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
def basis(root: Path, target: str) -> Basis:
    """Read from the files at the top of a run directory; what they do not determine is refused in words."""
    if not (root / "fit.json").exists():
        raise Problem(f"{root}: no fit.json, so there is no law yet", "`run` the study first; `status` shows how far it is")
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
    settings = asked.train.model_copy(update={"structures": None})
    depth = {"depth": largest.depth, "width": largest.width}
    settings = settings.model_copy(update={"model": settings.model.model_copy(update=depth)})
    laws = [as_law(entry.law, dict(zip(list(entry.estimates), row))) for row in entry.replicas]
    return Basis(
        entry, fit.confidence, as_law(entry.law, {name: e.value for name, e in entry.estimates.items()}), laws, points, settings,
        len(asked.data), largest.epochs, largest.atoms / largest.structures, neighbours(settings.model, largest),
    )  # fmt: skip


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
    if asked is not None and asked.site == name:
        largest = max(points, key=lambda p: p.flops)
        stage = next((s for s in asked.stages if s.id == f"train/{largest.run.split('/')[-1]}"), None)
        try:
            result = files.read_model(root / stage.folder / "result.json", StageResult) if stage else None
            ranks = files.read_model(root / stage.folder / "spec.json", StageSpec).runtime.ranks if stage else 1
        except files.BadFile:
            result = None
        if result and result.seconds > 0:
            where = f"{ranks} ranks" if ranks > 1 else "one rank"
            return Speed(largest.flops / result.seconds / ranks, f"measured, {largest.run} on {where}")
    return Speed(estimates.flops_per_second(site, 1, precision), "assumed by the site's file")


# ------------------------------------------------------------------------------------------------------ what is best
def rungs(known: Basis) -> list[Rung]:
    models = [known.settings.model.model_copy(update={"width": width}) for width in WIDTHS]
    return [Rung(model, model.body_parameters(), cost(model, known)) for model in models]


def best(law: Law, ladder: list[Rung], flops: float, most: float | None = None) -> Choice:
    """The width of least loss if all FLOPs go into one training; `most`: structures that there are."""
    choices = []
    for rung in ladder:
        d = min(flops / rung.cost, most or math.inf)
        if d >= 1:
            choices.append(Choice(rung, d, law.loss(rung.n, d)))
    if not choices:
        raise Problem("the budget does not pay for the smallest model and one structure", "give more --gpu-hours")
    return min(choices, key=lambda c: c.loss)


def cost(model: ModelConfig, known: Basis) -> float:
    """FLOPs of one unique structure, over all epochs."""
    return known.epochs * model.flops(known.atoms, known.atoms * known.neighbours)


def ranged(value: float, sample: list[float], confidence: float) -> Range:
    if len(sample) < 20:
        return Range(value, None, None)
    ordered, last = sorted(sample), len(sample) - 1
    low, high = (ordered[round(last * share)] for share in ((1 - confidence) / 2, (1 + confidence) / 2))
    return Range(value, low, high)


def advice(root: Path, site: SiteConfig, name: str, hours: float, target: str, most: float | None) -> dict[str, Any]:
    """Everything that is said, as numbers."""
    if not (hours > 0 and math.isfinite(hours)):
        raise Problem(f"--gpu-hours: found {hours:g}, expected more than 0")
    known = basis(root, target)
    rate = speed(root, site, name, known.settings.optim.precision, known.points)
    flops = 3600 * hours * rate.flops
    ladder = rungs(known)
    (model, n, each), d, loss = best(known.law, ladder, flops, most)
    others = [best(law, ladder, flops, most) for law in known.replicas]
    losses = [law.loss(n, d) for law in known.replicas]  # of this training, whatever would be best
    used = min(1.0, each * d / flops)
    nodes, ranks = job(site, hours * used, known.settings.optim.batch)
    settings = known.settings.model_copy(update={"model": model, "structures": round(d)})
    levers = choose(settings, known.sources, known.atoms, known.atoms * known.neighbours, site, ranks)
    twice = {what: 1 - known.law.loss(n * k, d * m) / loss for what, k, m in (("parameters", 2, 1), ("data", 1, 2))}
    twice["hours"] = 1 - best(known.law, ladder, 2 * flops, most).loss / loss
    return {
        "formula": known.entry.formula, "target": target, "log_rms": known.entry.log_rms, "confidence": known.confidence,
        "gpu_hours": hours, "flops": flops, "flops_per_second": rate.flops, "speed": rate.origin,
        "model": model.label, "depth": model.depth, "width": model.width,
        "parameters": ranged(n, [o.rung.n for o in others], known.confidence)._asdict(),
        "structures": ranged(d, [o.d for o in others], known.confidence)._asdict(),
        "epochs": known.epochs, "atoms": d * known.atoms, "atoms_seen": d * known.atoms * known.epochs,
        "loss": ranged(loss, losses, known.confidence)._asdict(),
        "floor": known.law.e, "of_model": known.law.a / n**known.law.alpha,
        "of_data": known.law.b / d**known.law.beta,
        "nodes": nodes, "ranks": ranks, "hours": hours * used / ranks, "limited": d == most,
        "fits": not levers.refusal, "memory": levers.refusal or levers.said, "twice": twice,
        "beyond": {
            "parameters": n / max(p.body_parameters for p in known.points),
            "structures": d / max(p.structures for p in known.points),
            "flops": used * flops / max(p.flops for p in known.points),
        },
        "runs": len(known.points),
    }  # fmt: skip


def job(site: SiteConfig, hours: float, batch: int) -> tuple[int, int]:
    """Nodes and ranks, so that it is over within the hours of a training of this site, if it may have so many."""
    if not site.batch:
        return 1, 1
    most = max(1, min(site.train.nodes[1], batch // site.ranks_per_node))
    nodes = min(max(site.train.nodes[0], math.ceil(hours / site.train.hours / site.ranks_per_node)), most)
    return nodes, nodes * site.ranks_per_node


# ------------------------------------------------------------------------------------------------------------ in words
def text(x: dict[str, Any], root: Path, site: SiteConfig, name: str) -> str:
    unit = "GPU" if site.node.gpus else "core" if not site.batch else "rank"
    shares = " + ".join(f"{x[part]:.3g} {words}" for part, words in (
        ("floor", "floor"), ("of_model", "for want of parameters"), ("of_data", "for want of data")) if x[part])  # fmt: skip
    twice, where = x["twice"], x["beyond"]
    lines = [
        f"{root}: {x['target']}, {x['formula']} from {x['runs']} runs (rms residual {percent(x['log_rms'])})",
        f"{x['gpu_hours']:,g} {unit}-hours on {name}: {x['flops']:.3g} FLOP at {x['flops_per_second'] / 1e12:.3g} TFLOP/s "
        f"a {unit} ({x['speed']})",
        f"  model   {x['model']}, depth {x['depth']}, width {x['width']:,}: N = {shown(x['parameters'])} body parameters",
        f"  data    D = {shown(x['structures'])} structures, {x['epochs']:g} epochs "
        f"({x['atoms']:.3g} atoms; {3 * x['atoms_seen']:.3g} force labels seen)",
        f"  job     {x['nodes']} node(s), {x['ranks']} {unit}(s), {x['hours']:,.3g} hours"
        + (f"; memory: {x['memory']}" if x["memory"] else ""),
        f"  {x['target']:7} {shown(x['loss'])} expected = {shares}",
        f"  twice   the hours: {percent(-twice['hours'])}; the data alone: {percent(-twice['data'])}; "
        f"the parameters alone: {percent(-twice['parameters'])}",
        f"Brackets: {percent(x['confidence'])} of the resampled runs; they do not hold that the law may fail further out.",
    ]
    if x["limited"]:
        lines.append("All the structures that there are: the rest goes into the model, as these runs do not say what more "
                     "epochs would bring.")  # fmt: skip
    if not x["fits"]:
        lines.append("As it stands this training does not fit into memory.")
    if x["log_rms"] > HOLDS:
        lines.append(f"The law does not hold even for the runs it is from: it misses them by {percent(x['log_rms'])}.")
    far = f"{where['flops']:,.3g} times the compute, {where['parameters']:,.3g} times the parameters and "
    far += f"{where['structures']:,.3g} times the data of the largest run"
    if where["flops"] > FAR:
        next_hours = x["gpu_hours"] * FAR / where["flops"]
        lines.append(f"This is {far}: a direction and no plan. Train first what {next_hours:,.3g} {unit}-hours buy, {FAR:g} "
                     "times the largest, and fit again.")  # fmt: skip
    else:
        lines.append(f"This is {far}.")
    return "\n".join(lines)


def shown(x: dict[str, float | None]) -> str:
    ends = "" if x["low"] is None else f" [{x['low']:.3g}, {x['high']:.3g}]"
    return f"{x['value']:.3g}{ends}"


def percent(share: float) -> str:
    return f"{100 * share:+.1f} %".replace("-", "−") if share < 0 else f"{100 * share:.1f} %"
