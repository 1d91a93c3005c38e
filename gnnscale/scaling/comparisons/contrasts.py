"""Comparisons for which a study is laid out, beside the laws: the best learning rate, and who is best at equal compute.

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

MAX_COMPUTE_DIFFERENCE = (
    0.08  # runs cost the same if they differ by no more than this share: lengths are rounded up to whole steps
)
MAX_RATE_FACTOR = 1.5  # a best rate that moves by less than this factor over all widths is called the same


class LineMinimum(NamedTuple):
    """The minimum of the losses along one line of runs."""

    at: float  # rate, or N
    loss: float
    inside: bool  # whether there are worse runs on both sides; else the best may lie beyond them
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
    found: dict[tuple, dict[int, LineMinimum]] = defaultdict(dict)
    for (*same, width), line in sorted(lines.items()):
        if len({p.learning_rate for p in line}) >= 3:
            found[tuple(same)][width] = find_line_minimum(line, "learning_rate")
    return [BestRates(same[0], widths) for same, widths in found.items()]


def group_by_compute(points: list[Point], target: str = "loss") -> list[EqualComputeGroup]:
    """Group runs of equal compute in which some model has three sizes or more at one rate and depth."""
    groups: list[list[Point]] = []
    for p in sorted((p for p in select_comparable(points) if p.flops > 0), key=lambda p: p.flops):  # 0: not known
        if groups and p.flops <= groups[-1][0].flops * (1 + MAX_COMPUTE_DIFFERENCE):
            groups[-1].append(p)
        else:
            groups.append([p])
    found = []
    for group in groups:
        lines = defaultdict(list)
        for p in group:
            lines[p.model, p.depth, p.learning_rate, p.structures].append(p)
        models: dict[str, LineMinimum] = {}
        for (model, *_), line in sorted(lines.items()):
            if len({p.body_parameters for p in line}) >= 3:
                one = find_line_minimum(line, "body_parameters", target)._replace(spread=seed_spread(line, target))
                if model not in models or one.loss < models[model].loss:
                    models[model] = one
        if models:
            found.append(EqualComputeGroup(float(np.mean([p.flops for p in group])), models))
    return found


def seed_spread(line: list[Point], target: str) -> float | None:
    """Return the standard deviation of the logarithm of the best N between seeds, from one parabola for each seed."""
    seeds = defaultdict(list)
    for p in line:
        seeds[p.seed].append(p)
    each = [
        find_line_minimum(own, "body_parameters", target) for own in seeds.values() if len({p.width for p in own}) >= 3
    ]
    if len(each) < 2 or not all(one.inside for one in each):
        return None
    return float(np.std([math.log(one.at) for one in each], ddof=1))


def fit_growth_of_best_size(found: list[tuple[float, LineMinimum]]) -> Growth:
    """Fit how the best N grows with compute.

    Where seeds tell how well each best N is known, the interval comes from drawing them again with the spread pooled over
    all budgets, as two seeds say little of one; elsewhere it comes from resampling the budgets.
    """
    spreads = [b.spread for _, b in found if b.spread is not None]
    spread = None
    if len(spreads) == len(found) and any(spreads):
        seeds = np.array([len({p.seed for p in b.points}) for _, b in found])
        spread = np.sqrt(np.mean(np.square(spreads)) / seeds)
    compute, sizes = np.array([(c, b.at) for c, b in found]).T
    return fit_growth(compute, sizes, spread)


# ---------------------------------------------------------------------------------------------------------- sentences
def describe_contrasts(points: list[Point], targets: tuple[str, ...], names: dict[str, str]) -> list[str]:
    return [*map(describe_rates, find_best_rates(points)), *describe_equal_compute(points, targets, names)]


def describe_rates(found: BestRates) -> str:
    inside = {width: b for width, b in found.widths.items() if b.inside}
    beyond = [str(width) for width in found.widths if width not in inside]
    edge = f" At width {join_names(beyond)} the best of the rates tried is at their end." if beyond else ""
    if not inside:
        return f"The best learning rate of {found.model} is not bracketed by the rates tried."
    each = join_names(f"{format_number(b.at)} at width {width}" for width, b in inside.items())
    said = f"The best learning rate of {found.model} is {each}"
    if len(inside) > 1:
        factor = max(b.at for b in inside.values()) / min(b.at for b in inside.values())
        verdict = "the same within" if factor <= MAX_RATE_FACTOR else "not the same: it moves by"
        said += f": {verdict} a factor of {factor:.2f} from width {min(inside)} to {max(inside)}"
    return f"{said}.{edge}"


def describe_equal_compute(points: list[Point], targets: tuple[str, ...], names: dict[str, str]) -> list[str]:
    """Describe the optimum of each budget and, where several models share one, how far each is behind the best of them."""
    said = describe_growth(points)
    for target in targets:
        for b in group_by_compute(points, target):
            if len(b.models) > 1:
                first, *rest = sorted(b.models.items(), key=lambda item: item[1].loss)
                behind = join_names(
                    f"{name} is {format_percent(x.loss / first[1].loss - 1)} higher" for name, x in rest
                )
                said.append(f"At {b.flops:.1e} FLOPs {first[0]} has the lowest {names[target]}; {behind}.")
    return said


def describe_growth(points: list[Point]) -> list[str]:
    """Describe how the best size of each model moves with compute; no law is assumed."""
    found, said = group_by_compute(points), []
    for model in sorted({m for b in found for m in b.models}):
        mine = [(b.flops, b.models[model]) for b in found if model in b.models]
        each = [f"{format_number(x.at)} at {c:.1e}" for c, x in mine if x.inside]
        if len(each) > 1:
            slope = fit_growth_of_best_size([(c, x) for c, x in mine if x.inside]).exponent
            ends = "" if slope.low is None or len(each) < 4 else f" [{slope.low:.2f}, {slope.high:.2f}]"
            said.append(
                f"The best size of {model} at equal compute is N = {join_names(each)} FLOPs: N ~ C^{slope.value:.2f}{ends}."
            )
    return said
