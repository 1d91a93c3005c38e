"""Points -> Fit: which points a law may use, the laws, their intervals, and whether the points determine them."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from gnnscale.scaling.findings import sentences, shown
from gnnscale.scaling.laws import LAWS, Optimum, PowerSum, optimum, resampled
from gnnscale.specs import Estimate, Fit, LawFit, Point, ScalingSettings

WHERE_N, WHERE_D, WHERE_ALL = "the largest data size", "the largest model", "the whole grid"
PLAN = {  # law -> the points that it is fitted to
    "Hoffmann": WHERE_ALL,
    "PurePowers": WHERE_ALL,
    "PowerN": WHERE_N,
    "PurePowerN": WHERE_N,
    "PowerD": WHERE_D,
    "PurePowerD": WHERE_D,
}
REPLICAS = 200  # resampled parameters kept in fit.json: enough for a 95 % band, and a small file
EXPONENTS = (0.01, 3.0)  # an exponent whose interval reaches beyond is not called determined
SPAN = 3.0  # nor one whose interval spans a larger factor
COLLINEAR = 0.98  # correlation of log N and log D above which their effects cannot be told apart


class Grid(NamedTuple):
    """The width x structures grid: all that differs between its points is N and D."""

    model: str
    depth: int
    epochs: float
    seed: int

    def holds(self, p: Point) -> bool:
        return (p.model, p.depth, p.epochs, p.seed) == tuple(self)

    def left_out(self, p: Point) -> str:
        """The rule by which a point is not in the grid."""
        return "another " + next(name for name, value in self._asdict().items() if getattr(p, name) != value)


class Fitted(NamedTuple):
    """A law with what its LawFit cannot hold: the function, the values as an array, all resamples."""

    entry: LawFit
    law: PowerSum
    values: np.ndarray
    replicas: np.ndarray | None  # (resamples, parameters); None where no interval can be given
    points: tuple[Point, ...]


def fit(points: list[Point], settings: ScalingSettings) -> Fit:
    """All laws for all targets; the same points and settings give the same Fit, whatever the order of the points."""
    points = sorted(points, key=lambda p: (p.run, p.model_dump_json()))
    grid = main_grid(points)
    fitted: list[Fitted] = []
    for target in settings.targets:
        kept, excluded = usable(points, target, grid)
        for k, (name, where) in enumerate(PLAN.items()):
            used = subset(kept, where)
            if used:
                fitted.append(fit_law(LAWS[name], used, target, where, excluded, settings, stream=k))
    said, unsaid = sentences(points, grid, fitted, settings)
    return Fit(
        laws=tuple(f.entry for f in fitted),
        bootstrap=settings.bootstrap,
        confidence=settings.confidence,
        seed=settings.seed,
        findings=said,
        unsupported=unsaid,
    )


def main_grid(points: list[Point]) -> Grid:
    """The model, depth, epochs and seed that most points share, chosen one after the other; ties go to the smaller."""
    chosen, rest = [], [p for p in points if not p.diverged] or points
    for name in Grid._fields:
        counts = Counter(getattr(p, name) for p in rest)
        best = min(counts, key=lambda value: (-counts[value], value))
        rest = [p for p in rest if getattr(p, name) == best]
        chosen.append(best)
    return Grid(*chosen)


def usable(points: list[Point], target: str, grid: Grid) -> tuple[list[Point], dict[str, str]]:
    """The points a law may use, by (N, D), and for each other run the rule that left it out."""
    kept, excluded, cells = [], {}, {}
    for p in points:
        value, cell = getattr(p, target), (p.model, p.width, p.depth, p.structures, p.epochs, p.seed)
        if p.diverged:
            rule = "diverged"
        elif not math.isfinite(value):
            rule = f"{target} is not finite"
        elif value <= 0:
            rule = f"{target} is not positive"
        elif cell in cells:
            rule = f"duplicate of {cells[cell]}"
        elif not grid.holds(p):
            rule = grid.left_out(p)
        else:
            kept.append(p)
            cells[cell] = p.run
            continue
        name, again = p.run, 2
        while name in excluded or any(name == k.run for k in kept):
            name, again = f"{p.run} (row {again})", again + 1
        excluded[name] = rule
    return sorted(kept, key=lambda p: (p.body_parameters, p.structures, p.run)), excluded


def subset(points: list[Point], where: str) -> list[Point]:
    if where == WHERE_N:
        most = max((p.structures for p in points), default=0)
        return [p for p in points if p.structures == most]
    if where == WHERE_D:
        most = max((p.body_parameters for p in points), default=0)
        return [p for p in points if p.body_parameters == most]
    return points


def arrays(points: list[Point] | tuple[Point, ...], target: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D, L"""
    rows = np.array([(p.body_parameters, p.structures, getattr(p, target)) for p in points], float)
    return rows[:, 0], rows[:, 1], rows[:, 2]


def fit_law(
    law: PowerSum,
    points: list[Point],
    target: str,
    where: str,
    excluded: dict[str, str],
    settings: ScalingSettings,
    stream: int,
) -> Fitted:
    n, d, loss = arrays(points, target)
    found = optimum(law, n, d, loss)
    x = law.columns(n, d)
    replicas, undetermined = bootstrap(law, n, d, loss, found, settings, stream)
    estimates = {name: Estimate(value=rounded(v)) for name, v in zip(law.parameters, found.values)}
    if replicas is not None:
        estimates = {
            name: estimate(v, column, settings.confidence)
            for name, v, column in zip(law.parameters, found.values, replicas.T)
        }
    doubts = design_doubts(law, x) + shape_doubts(law, found, n, d, loss) + interval_doubts(law, estimates, loss)
    notes = list(doubts)
    if undetermined:
        notes.append(
            f"{undetermined} of {settings.bootstrap} resamples do not determine the parameters, and were left out"
        )
    if replicas is not None and len(n) < len(law.parameters) + 3:
        notes.append(f"{len(n)} points for {len(law.parameters)} parameters: the intervals are too narrow")
    if found.at_optimum < 0.5:
        notes.append(f"only {found.at_optimum:.0%} of the starts reached the best optimum")
    keep = replicas is not None and len(law.axes) == 2 and law.floor  # the law whose bands are drawn
    entry = LawFit(
        law=law.name,
        formula=law.formula,
        target=target,
        where=f"{where}: N = body parameters {span(n)}, D = unique training structures {span(d)}",
        points=tuple(p.run for p in points),
        excluded=excluded,
        estimates=estimates,
        objective=rounded(found.objective),
        log_rms=rounded(found.log_rms),
        at_optimum=rounded(found.at_optimum),
        identified=not doubts,
        notes=tuple(notes),
        replicas=tuple(tuple(rounded(v, 6) for v in row) for row in replicas[:REPLICAS]) if keep else (),
    )
    return Fitted(entry, law, found.values, replicas, tuple(points))


def bootstrap(
    law: PowerSum,
    n: np.ndarray,
    d: np.ndarray,
    loss: np.ndarray,
    found: Optimum,
    settings: ScalingSettings,
    stream: int,
) -> tuple[np.ndarray | None, int]:
    """Pairs bootstrap over runs: parameters per resample, and how many resamples determine none.

    No interval at all without a point to spare, or when most resamples fail: what is left would not be a sample of
    what could have been measured.
    """
    if not settings.bootstrap or len(n) <= len(law.parameters):
        return None, 0
    # a stream per law: adding a law or a target does not move the intervals of the others
    rng = np.random.default_rng([settings.seed, stream])
    counts = rng.multinomial(len(n), np.full(len(n), 1 / len(n)), size=settings.bootstrap)
    x = law.columns(n, d)
    determined = np.array([not design_doubts(law, x[row > 0]) for row in counts])
    if determined.mean() < 0.5:
        return None, int((~determined).sum())
    return resampled(law, n, d, loss, found, counts[determined]), int((~determined).sum())


def design_doubts(law: PowerSum, x: np.ndarray) -> list[str]:
    """What the places of the points alone leave open, in words."""
    doubts = []
    distinct = [len(np.unique(column)) for column in x.T]
    # a sum of powers is known by its differences along each axis: k values of N determine k - 1 of them
    needed = 2 + law.floor
    for axis, k in zip(law.axes, distinct):
        if k < needed:
            doubts.append(f"{k} values of {axis}, where the law needs {needed}")
    if not doubts and sum(distinct) - len(law.axes) + 1 < len(law.parameters):
        doubts.append(f"{' x '.join(map(str, distinct))} values of N x D for {len(law.parameters)} parameters")
    if not doubts and len(x) < len(law.parameters):
        doubts.append(f"{len(x)} points for {len(law.parameters)} parameters")
    if not doubts and x.shape[1] == 2:
        a, b = (x - x.mean(axis=0)).T
        r = float(a @ b / math.sqrt((a @ a) * (b @ b)))
        if abs(r) > COLLINEAR:
            doubts.append(
                f"N and D vary together (correlation of their logarithms {r:.3f}): no telling which one helps"
            )
    return doubts


def shape_doubts(law: PowerSum, found: Optimum, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> list[str]:
    """Whether a point is to spare, each power does more over the points than the residuals, and the optimum is one."""
    doubts = []
    if len(loss) == len(law.parameters):
        doubts.append(
            f"{len(loss)} points for {len(law.parameters)} parameters: it passes through them and tests nothing"
        )
    if found.spread > 0.01:
        doubts.append(f"the optimum is not unique: exponents that differ by {found.spread:.2g} fit equally well")
    values = dict(zip(law.parameters, found.values))
    for axis, column in zip(law.axes, law.columns(n, d).T):
        exponent = values[{"N": "alpha", "D": "beta"}[axis]]
        term = np.exp(np.log(max(values[{"N": "A", "D": "B"}[axis]], 1e-300)) - exponent * column) / np.median(loss)
        if np.ptp(term) < max(2 * found.log_rms, 1e-4):
            doubts.append(
                f"over the points {axis} moves the target by {np.ptp(term):.2%}, no more than the residuals "
                f"({found.log_rms:.2%} rms)"
            )
    return doubts


def interval_doubts(law: PowerSum, estimates: dict[str, Estimate], loss: np.ndarray) -> list[str]:
    doubts = []
    for name in law.exponents:
        e = estimates[name]
        low, high = (e.value, e.value) if e.low is None else (e.low, e.high)
        if low < EXPONENTS[0] or high > EXPONENTS[1]:
            doubts.append(f"{name} {shown(e)} reaches beyond {EXPONENTS[0]} to {EXPONENTS[1]}")
        elif high > SPAN * low:
            doubts.append(f"the interval of {name}, {shown(e)}, spans a factor {high / low:.1f}")
    if law.floor:
        e = estimates["E"]
        if (e.value if e.low is None else e.low) < 0.01 * loss.min():
            doubts.append(f"E {shown(e)} cannot be told from 0: no floor is seen yet")
    return doubts


def estimate(value: float, sample: np.ndarray, confidence: float) -> Estimate:
    low, high = np.quantile(sample, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value=rounded(value), low=rounded(low), high=rounded(high))


def rounded(value: float, digits: int = 12) -> float:
    """So that fit.json does not carry the last bits of a floating-point library."""
    return float(f"{float(value):.{digits}g}")


def span(values: np.ndarray) -> str:
    low, high = f"{values.min():,.0f}", f"{values.max():,.0f}"
    return low if low == high else f"{low} to {high}"
