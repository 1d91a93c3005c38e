"""The largest training that a budget of GPU-hours buys: model, data and job, from the laws of a finished study."""

from __future__ import annotations

import math
from bisect import bisect_left
from pathlib import Path
from typing import Any, NamedTuple

from gnnscale.architectures.registry import ModelConfig
from gnnscale.contract.errors import UserError
from workflow.advise.basis import AdviceBasis, LossLaw, read_basis
from workflow.config import capacity
from workflow.config.site import SiteConfig
from workflow.plan import cost
from workflow.plan.memory_fit import MemoryFit, choose_levers

MAX_EXTRAPOLATION = 10.0  # times the compute of the largest run; beyond it, advice is a direction and not a plan
LOSS_TOLERANCE = 0.01  # relative loss increase accepted for a smaller model, where more hours find no more data
UNLIMITED_STRUCTURES = 1e9  # so many that the start of a training takes no share of its time
MAX_HOURS = 1e12  # ten thousand years of the largest machine that exists; numbers far above overflow
MAX_RESIDUAL = 0.05  # rms residual of log L, as in gnnscale/scaling/fitting/identifiability.py
MIN_SAMPLE = 20  # resampled fits from which an interval can be read
BISECTIONS = 20


class ModelSize(NamedTuple):
    """A width that could be trained."""

    model: ModelConfig
    n: int
    seconds: float  # per unique structure, over all epochs, where there are many


class ModelSizes(NamedTuple):
    """The widths that fit into memory on a number of ranks, the narrowest first."""

    ranks: int
    hours: float  # that a training may take on them, where more ranks are available
    sizes: list[ModelSize]
    limit: str  # why there is none wider


class Choice(NamedTuple):
    """The best training that a budget buys."""

    size: ModelSize
    d: float
    loss: float


class TrainingJob(NamedTuple):
    """Ranks and time of a training, and how it fits into memory."""

    ranks: int
    seconds: float
    memory: MemoryFit


class ValueRange(NamedTuple):
    """A value and the interval around it, if there is one."""

    value: float
    low: float | None
    high: float | None


# ------------------------------------------------------------------------------------------- what trainings take
def training_flops(model: ModelConfig, d: float, known: AdviceBasis) -> float:
    """Return the FLOPs of a training on `d` unique structures, over all epochs."""
    return known.epochs * model.flops(d * known.atoms, d * known.atoms * known.neighbours)


def training_seconds(model: ModelConfig, d: float, ranks: int, known: AdviceBasis) -> float:
    """Return the seconds of that training on `ranks` ranks, by the measured speed or else by the planner's estimate."""
    if known.speed.start is None:
        return training_flops(model, d, known) / known.speed.flops / ranks
    settings = known.settings.model_copy(update={"model": model})
    return cost.train_seconds(settings, [cost.SourceSize(d, known.atoms, known.neighbours)], known.site, ranks)


def fit_into_memory(model: ModelConfig, ranks: int, known: AdviceBasis) -> MemoryFit:
    """Return how a model fits into the memory of a rank, as the planner does it."""
    settings = known.settings.model_copy(update={"model": model})
    return choose_levers(settings, known.sources, known.atoms, known.atoms * known.neighbours, known.site, ranks)


def allowed_ranks(known: AdviceBasis) -> list[int]:
    """Return the numbers of ranks that a training may have, ascending; no more than structures in a batch."""
    few, *more = capacity.rank_counts(known.site)
    return [few, *(ranks for ranks in more if ranks <= known.settings.optim.batch)]


def plan_job(model: ModelConfig, d: float, known: AdviceBasis) -> TrainingJob:
    """Return the job on the fewest ranks on which the training fits and ends in time, as the planner chooses them."""
    for ranks in allowed_ranks(known):
        job = TrainingJob(ranks, training_seconds(model, d, ranks, known), fit_into_memory(model, ranks, known))
        if not job.memory.refusal and job.seconds <= 3600 * known.site.train.hours:
            break
    return job


# --------------------------------------------------------------------------------------------------- what is best
def list_model_sizes(known: AdviceBasis) -> list[ModelSizes]:
    """List the widths for each number of ranks on which any width fits into memory."""
    models, allowed = known.settings.model.at_all_widths(), allowed_ranks(known)
    found = [list_sizes_on(ranks, models, ranks == allowed[-1], known) for ranks in allowed]
    if not any(each.sizes for each in found):
        refusal = fit_into_memory(models[0], allowed[-1], known).refusal
        raise UserError(f"not even the narrowest model can be trained on this site: {refusal}")
    return [each for each in found if each.sizes]


def list_sizes_on(ranks: int, models: list[ModelConfig], most: bool, known: AdviceBasis) -> ModelSizes:
    """List the widths that fit into memory on `ranks` ranks; `most`: no training can have more."""
    fit = bisect_left(models, True, key=lambda model: bool(fit_into_memory(model, ranks, known).refusal))
    sizes = [
        ModelSize(model, model.body_parameters(), seconds_per_structure(model, ranks, known)) for model in models[:fit]
    ]
    limit = "looked at" if fit == len(models) else "that fits into memory"
    hours = math.inf if most else 0.99 * known.site.train.hours  # steps are whole
    return ModelSizes(ranks, hours, sizes, limit)


def seconds_per_structure(model: ModelConfig, ranks: int, known: AdviceBasis) -> float:
    return training_seconds(model, UNLIMITED_STRUCTURES, ranks, known) / UNLIMITED_STRUCTURES


def choose_size(
    law: LossLaw, available: ModelSizes, hours: float, most: float | None, known: AdviceBasis
) -> Choice | None:
    """Return the width of least loss if all hours go into one training; None if they buy no batch.

    `most` is the number of structures that exist. Where all of them are used, a smaller model of almost the same loss
    is taken.
    """
    choices, time = [], 3600 * min(hours / available.ranks, available.hours)
    for size in available.sizes:
        d = (time - (known.speed.start or 0)) / size.seconds
        if d >= known.settings.optim.batch:
            d = min(d, most or d)
            choices.append(Choice(size, d, law.loss(size.n, d)))
    least = min(choices, key=lambda choice: choice.loss, default=None)
    if least is None or least.d != most:
        return least
    return next(c for c in choices if c.d == most and c.loss <= (1 + LOSS_TOLERANCE) * least.loss)


def choose_ranks(
    available: list[ModelSizes], hours: float, most: float | None, known: AdviceBasis
) -> tuple[Choice, ModelSizes] | None:
    """Return the best choice over all numbers of ranks; of equals, the one on the fewest."""
    found = [(choose_size(known.law, sizes, hours, most, known), sizes) for sizes in available]
    possible = [(choice, sizes) for choice, sizes in found if choice is not None]
    return min(possible, key=lambda pair: pair[0].loss, default=None)


def hours_needed(
    flops: float, available: list[ModelSizes], hours: float, most: float | None, known: AdviceBasis
) -> float:
    """Return the hours, fewer than `hours`, whose best training takes so many FLOPs."""
    low, high = 1e-9, hours
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        found = choose_ranks(available, middle, most, known)
        enough = found is not None and training_flops(found[0].size.model, found[0].d, known) >= flops
        low, high = (low, middle) if enough else (middle, high)
    return high


def range_of(value: float, sample: list[float], confidence: float) -> ValueRange:
    """Return a value with the interval of its resampled values, if there are enough of them."""
    if len(sample) < MIN_SAMPLE:
        return ValueRange(value, None, None)
    ordered, last = sorted(sample), len(sample) - 1
    low, high = (ordered[round(last * share)] for share in ((1 - confidence) / 2, (1 + confidence) / 2))
    return ValueRange(value, low, high)


# ------------------------------------------------------------------------------------------------------- the advice
def compute_advice(
    root: Path, site: SiteConfig, name: str, hours: float, target: str, most: float | None
) -> dict[str, Any]:
    """Return the advice as numbers; `most` is the number of structures that exist, None for no limit."""
    if not 0 < hours < MAX_HOURS:
        raise UserError(f"--gpu-hours: found {hours:g}, expected more than 0 and less than {MAX_HOURS:g}")
    if most is not None and not 1 <= most < math.inf:
        raise UserError(f"--structures: found {most:g}, expected 1 or more")
    known = read_basis(root, target, site, name)
    available = list_model_sizes(known)
    found = choose_ranks(available, hours, most, known)
    if found is None:
        smallest = available[0].sizes[0].model.short_name()
        raise UserError(
            f"{hours:g} GPU-hours are not enough to train even the smallest model ({smallest}) for one batch",
            "give more --gpu-hours",
        )
    best, sizes = found
    flops, largest = training_flops(best.size.model, best.d, known), max(point.flops for point in known.points)
    is_far = flops > MAX_EXTRAPOLATION * largest
    return {
        "formula": known.entry.formula,
        "target": target,
        "log_rms": known.entry.log_rms,
        "confidence": known.confidence,
        "gpu_hours": hours,
        "runs": len(known.points),
        **describe_training(best, most, known),
        **ranges_of_sizes(best, sizes, hours, most, known),
        **describe_job(plan_job(best.size.model, best.d, known), flops, known),
        "twice": gains_of_doubling(best, available, hours, most, known),
        "beyond": {
            "parameters": best.size.n / max(point.body_parameters for point in known.points),
            "structures": best.d / max(point.structures for point in known.points),
            "flops": flops / largest,
        },
        "next_hours": hours_needed(MAX_EXTRAPOLATION * largest, available, hours, most, known) if is_far else None,
    }


def describe_training(best: Choice, most: float | None, known: AdviceBasis) -> dict[str, Any]:
    """Return the model, the data and the expected loss with its parts."""
    size, d, law = best.size, best.d, known.law
    return {
        "model": size.model.label,
        "depth": size.model.depth,
        "width": size.model.width,
        "epochs": known.epochs,
        "atoms": d * known.atoms,
        "atoms_seen": d * known.atoms * known.epochs,
        "limited": d == most,
        "loss": range_of(best.loss, [each.loss(size.n, d) for each in known.replicas], known.confidence)._asdict(),
        "floor": law.e,
        "of_model": law.a / size.n**law.alpha,
        "of_data": law.b / d**law.beta,
    }


def describe_job(job: TrainingJob, flops: float, known: AdviceBasis) -> dict[str, Any]:
    """Return the nodes and hours of a training, its speed, and the share of its time that no FLOPs fill."""
    return {
        "flops": flops,
        "flops_per_second": known.speed.flops,
        "speed": known.speed.origin,
        "fixed": 1 - flops / known.speed.flops / job.ranks / job.seconds,
        "nodes": job.ranks // known.site.ranks_per_node if known.site.has_scheduler else 1,
        "ranks": job.ranks,
        "hours": job.seconds / 3600,
        "memory": job.memory.description,
    }


def ranges_of_sizes(
    best: Choice, sizes: ModelSizes, hours: float, most: float | None, known: AdviceBasis
) -> dict[str, Any]:
    """Return parameters and structures with their intervals, which the ends of the list of widths leave open."""
    others = [choose_size(law, sizes, hours, most, known) for law in known.replicas]
    found = [other for other in others if other is not None]
    ends = {sizes.sizes[0].n: "narrowest looked at", sizes.sizes[-1].n: f"widest {sizes.limit}"}
    parameters = range_of(best.size.n, [other.size.n for other in found], known.confidence)
    if set(parameters) & set(ends):
        parameters = ValueRange(best.size.n, None, None)
    structures = range_of(best.d, [other.d for other in found], known.confidence)
    if best.d == most or parameters.low is None:
        structures = ValueRange(best.d, None, None)
    return {
        "end": ends.get(best.size.n, ""),
        "parameters": parameters._asdict(),
        "structures": structures._asdict(),
    }


def gains_of_doubling(
    best: Choice, available: list[ModelSizes], hours: float, most: float | None, known: AdviceBasis
) -> dict[str, float]:
    """Return by which share the loss falls with twice the parameters, the data or the hours."""
    more = choose_ranks(available, 2 * hours, most, known)
    assert more is not None, "twice the hours buy what the hours bought"
    losses = {
        "parameters": known.law.loss(2 * best.size.n, best.d),
        "data": known.law.loss(best.size.n, 2 * best.d),
        "hours": more[0].loss,
    }
    return {what: 1 - loss / best.loss for what, loss in losses.items()}
