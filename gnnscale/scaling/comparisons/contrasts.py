"""Comparisons for which a study is laid out, beside the laws: the best learning rate, and the best model at equal compute.

Both are bottoms of parabolas through the logarithm of the loss: over the logarithm of the rate, or of N.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from gnnscale.contract.scaling_results import Point
from gnnscale.scaling.comparisons.isoflop import Growth, fit_growth
from gnnscale.scaling.grid import select_comparable
from gnnscale.scaling.words import format_number, format_percent, join_names

MAX_COMPUTE_DIFFERENCE = 0.08  # share up to which runs cost the same: lengths are rounded up to whole steps
MAX_RATE_FACTOR = 1.5  # a best rate that moves by less than this factor over all widths is called the same


class LineMinimum(NamedTuple):
    """The minimum of the losses along one line of runs."""

    at: float  # rate, or N
    loss: float
    inside: bool  # true if there are worse runs on both sides; else the best may lie beyond them
    points: tuple[Point, ...]  # along the line
    spread: float | None = None  # standard deviation of log `at` between seeds, where there are several


class BestRates(NamedTuple):
    """The best learning rate of one model at one data size, by width."""

    model: str
    widths: dict[int, LineMinimum]


class EqualComputeGroup(NamedTuple):
    """Runs of equal compute, of one or several models."""

    flops: float
    models: dict[str, LineMinimum]


def find_line_minimum(points: list[Point], along: str, target: str = "loss") -> LineMinimum:
    """Return the minimum of the least-squares parabola through all points, as seeds scatter more than neighbours differ."""
    line = tuple(sorted(points, key=lambda p: getattr(p, along)))
    x, y = (np.log([getattr(p, name) for p in line]) for name in (along, target))
    curvature, slope, _ = np.polyfit(x - x.mean(), y, 2)
    at = x.mean() - slope / (2 * curvature) if curvature > 0 else np.inf
    if not x[0] < at < x[-1]:
        best = min(line, key=lambda p: getattr(p, target))
        return LineMinimum(getattr(best, along), getattr(best, target), False, line)
    return LineMinimum(float(np.exp(at)), float(np.exp(np.polyval(np.polyfit(x - at, y, 2), 0.0))), True, line)


def find_best_rates(points: list[Point]) -> list[BestRates]:
    """Find every model that was trained with three rates or more at some widths, all else equal."""
    lines = defaultdict(list)
    for p in select_comparable(points):
        lines[p.model, p.depth, p.structures, p.epochs, p.seed, p.width].append(p)
    by_model: dict[tuple, dict[int, LineMinimum]] = defaultdict(dict)
    for (*same, width), line in sorted(lines.items()):
        if len({p.learning_rate for p in line}) >= 3:
            by_model[tuple(same)][width] = find_line_minimum(line, "learning_rate")
    return [BestRates(same[0], widths) for same, widths in by_model.items()]


def group_by_compute(points: list[Point], target: str = "loss") -> list[EqualComputeGroup]:
    """Group runs of equal compute in which some model has three sizes or more at one rate and depth."""
    groups: list[list[Point]] = []
    for p in sorted((p for p in select_comparable(points) if p.flops > 0), key=lambda p: p.flops):  # 0: not known
        if groups and p.flops <= groups[-1][0].flops * (1 + MAX_COMPUTE_DIFFERENCE):
            groups[-1].append(p)
        else:
            groups.append([p])
    comparable = []
    for group in groups:
        lines = defaultdict(list)
        for p in group:
            lines[p.model, p.depth, p.learning_rate, p.structures].append(p)
        models: dict[str, LineMinimum] = {}
        for (model, *_), line in sorted(lines.items()):
            if len({p.body_parameters for p in line}) >= 3:
                minimum = find_line_minimum(line, "body_parameters", target)
                if model not in models or minimum.loss < models[model].loss:
                    models[model] = minimum._replace(spread=seed_spread(line, target))
        if models:
            comparable.append(EqualComputeGroup(float(np.mean([p.flops for p in group])), models))
    return comparable


def seed_spread(line: list[Point], target: str) -> float | None:
    """Return the standard deviation of the logarithm of the best N between seeds, from one parabola for each seed."""
    seeds = defaultdict(list)
    for p in line:
        seeds[p.seed].append(p)
    lines = [of_seed for of_seed in seeds.values() if len({p.width for p in of_seed}) >= 3]
    minima = [find_line_minimum(of_seed, "body_parameters", target) for of_seed in lines]
    if len(minima) < 2 or not all(minimum.inside for minimum in minima):
        return None
    return float(np.std([math.log(minimum.at) for minimum in minima], ddof=1))


def fit_growth_of_best_size(minima: list[tuple[float, LineMinimum]]) -> Growth:
    """Fit how the best N grows with compute, from (FLOPs, minimum) of each budget.

    Where seeds show how well each best N is known, the interval comes from drawing them again with the spread pooled over
    all budgets, as two seeds show little of one; elsewhere it comes from resampling the budgets.
    """
    spreads = [minimum.spread for _, minimum in minima if minimum.spread is not None]
    spread = None
    if len(spreads) == len(minima) and any(spreads):
        seeds = np.array([len({p.seed for p in minimum.points}) for _, minimum in minima])
        spread = np.sqrt(np.mean(np.square(spreads)) / seeds)
    compute, sizes = np.array([(flops, minimum.at) for flops, minimum in minima]).T
    return fit_growth(compute, sizes, spread)


# ---------------------------------------------------------------------------------------------------------- sentences
def describe_contrasts(points: list[Point], targets: tuple[str, ...], names: dict[str, str]) -> list[str]:
    return [*map(describe_rates, find_best_rates(points)), *describe_equal_compute(points, targets, names)]


def describe_rates(best: BestRates) -> str:
    inside = {width: minimum for width, minimum in best.widths.items() if minimum.inside}
    beyond = [str(width) for width in best.widths if width not in inside]
    edge = f" At width {join_names(beyond)} the best of the rates tried is at their end." if beyond else ""
    if not inside:
        return f"The best learning rate of {best.model} is not bracketed by the rates tried."
    each = join_names(f"{format_number(minimum.at)} at width {width}" for width, minimum in inside.items())
    text = f"The best learning rate of {best.model} is {each}"
    if len(inside) > 1:
        rates = [minimum.at for minimum in inside.values()]
        factor = max(rates) / min(rates)
        verdict = "the same within" if factor <= MAX_RATE_FACTOR else "not the same: it moves by"
        text += f": {verdict} a factor of {factor:.2f} from width {min(inside)} to {max(inside)}"
    return f"{text}.{edge}"


def describe_equal_compute(points: list[Point], targets: tuple[str, ...], names: dict[str, str]) -> list[str]:
    """Describe the optimum of each budget and, where several models share one, how far each is behind the best of them."""
    sentences = describe_growth(points)
    for target in targets:
        for group in group_by_compute(points, target):
            if len(group.models) > 1:
                (best, least), *rest = sorted(group.models.items(), key=lambda item: item[1].loss)
                behind = join_names(f"{name} is {format_percent(x.loss / least.loss - 1)} higher" for name, x in rest)
                sentences.append(f"At {group.flops:.1e} FLOPs {best} has the lowest {names[target]}; {behind}.")
    return sentences


def describe_growth(points: list[Point]) -> list[str]:
    """Describe how the best size of each model moves with compute; no law is assumed."""
    groups, sentences = group_by_compute(points), []
    for model in sorted({name for group in groups for name in group.models}):
        of_model = [(group.flops, group.models[model]) for group in groups if model in group.models]
        minima = [(flops, minimum) for flops, minimum in of_model if minimum.inside]
        if len(minima) > 1:
            each = join_names(f"{format_number(minimum.at)} at {flops:.1e}" for flops, minimum in minima)
            slope = fit_growth_of_best_size(minima).exponent
            ends = "" if slope.low is None or len(minima) < 4 else f" [{slope.low:.2f}, {slope.high:.2f}]"
            sentences.append(
                f"The best size of {model} at equal compute is N = {each} FLOPs: N ~ C^{slope.value:.2f}{ends}."
            )
    return sentences
