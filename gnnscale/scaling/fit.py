"""Points -> Fit: the laws, their intervals, whether the points determine them, and which one to go by."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from gnnscale.scaling.findings import sentences
from gnnscale.scaling.grid import WHERE_ALL, WHERE_D, WHERE_N, main_grid, subset, usable
from gnnscale.scaling.laws import COEFFICIENT, LAWS, LIMIT, Optimum, PowerSum, optimum, resampled
from gnnscale.scaling.words import shown
from gnnscale.specs import Estimate, Fit, LawFit, Point, ScalingSettings

ALONG = (("PowerN", WHERE_N), ("PurePowerN", WHERE_N), ("PowerD", WHERE_D), ("PurePowerD", WHERE_D))
NESTED = ("PurePowers", "EqualPowers", "PowerD", "PurePowerD", "PowerN", "PurePowerN")  # in E + A/N^alpha + B/D^beta
REPLICAS = 200  # resampled parameters kept in fit.json: enough for a 95 % band, and a small file
EXPONENTS = (0.01, 0.99 * LIMIT)  # an exponent whose interval reaches beyond is not called determined
SPAN = 3.0  # nor one whose interval spans a larger factor
SEEN = 0.01  # of the smallest target: a floor whose interval reaches below cannot be told from 0
COLLINEAR = 0.98  # correlation of log N and log D above which their effects cannot be told apart


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
        if not kept:
            continue
        # a stream of random numbers per law: adding a law or a target does not move the intervals of the others
        grid_laws = [fit_law(LAWS["Hoffmann"], kept, target, WHERE_ALL, excluded, settings, stream=0)]
        if not grid_laws[0].entry.identified:
            grid_laws += [
                fit_law(LAWS[name], kept, target, WHERE_ALL, excluded, settings, stream=k)
                for k, name in enumerate(NESTED, 10)
            ]
        fitted += choose(grid_laws)
        fitted += [
            fit_law(LAWS[name], subset(kept, where), target, where, excluded, settings, stream=k)
            for k, (name, where) in enumerate(ALONG, 1)
        ]
    said, unsaid = sentences(points, grid, fitted, settings)
    return Fit(
        laws=tuple(f.entry for f in fitted),
        bootstrap=settings.bootstrap,
        confidence=settings.confidence,
        seed=settings.seed,
        findings=said,
        unsupported=unsaid,
    )


def choose(fitted: list[Fitted]) -> list[Fitted]:
    """Mark the law to go by: the joint one if the points determine it, else the determined part of it of least AICc."""
    determined = [f for f in fitted if f.entry.identified]
    best = min(determined, key=aicc, default=None)
    return [mark(f) if f is best else f for f in fitted]


def mark(f: Fitted) -> Fitted:
    kept = () if f.replicas is None else tuple(tuple(rounded(v, 6) for v in row) for row in f.replicas[:REPLICAS])
    return f._replace(entry=f.entry.model_copy(update={"chosen": True, "replicas": kept}))


def aicc(f: Fitted) -> float:
    """Akaike's criterion for few points, of Laplace residuals of log L (Huber's loss is |residual| beyond DELTA)."""
    n, k = len(f.points), len(f.law.parameters) + 1
    if n <= k + 1:
        return math.inf
    return 2 * n * math.log(max(f.entry.objective, 1e-15)) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


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
    doubts = design_doubts(law, x) + shape_doubts(law, found, n, d, loss)
    # where the points leave a parameter open, resamples of them would give it an interval without meaning
    replicas, undetermined = (None, 0) if doubts else bootstrap(law, n, d, loss, found, settings, stream)
    estimates = {name: Estimate(value=rounded(v)) for name, v in zip(law.parameters, found.values)}
    if replicas is not None:
        estimates = {
            name: estimate(v, column, settings.confidence)
            for name, v, column in zip(law.parameters, found.values, replicas.T)
        }
    estimates |= {name: cleared(estimates[name], EXPONENTS[0]) for name in law.exponents}
    if law.floor:
        estimates["E"] = cleared(estimates["E"], SEEN * loss.min())
    doubts += interval_doubts(law, estimates)
    notes = list(doubts)
    if undetermined:
        notes.append(
            f"{undetermined} of {settings.bootstrap} resamples do not determine the parameters, and were left out"
        )
    if replicas is not None and len(n) < len(law.parameters) + 3:
        notes.append(f"{len(n)} points for {len(law.parameters)} parameters: the intervals are too narrow")
    if found.at_optimum < 0.5:
        notes.append(f"only {found.at_optimum:.0%} of the starts reached the best optimum")
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
        term = values[COEFFICIENT[axis]] * np.exp(-values[law.exponent(axis)] * column) / np.median(loss)
        if np.ptp(term) < max(found.log_rms, 1e-4):
            doubts.append(
                f"over the points {axis} moves the target by {np.ptp(term):.1%}, no more than the residuals "
                f"({found.log_rms:.1%} rms)"
            )
    return doubts


def interval_doubts(law: PowerSum, estimates: dict[str, Estimate]) -> list[str]:
    doubts = []
    for name in law.exponents:
        e = estimates[name]
        low, high = (e.value, e.value) if e.low is None else (e.low, e.high)
        if high > EXPONENTS[1]:
            doubts.append(f"{name}, {shown(e)}, reaches its bound of {LIMIT:g}")
        elif low < EXPONENTS[0]:
            doubts.append(f"{name} cannot be told from 0")
        elif high > SPAN * low:
            doubts.append(f"the interval of {name}, {shown(e)}, spans a factor {high / low:.1f}")
    if law.floor and (e := estimates["E"]) and (e.value if e.low is None else e.low) == 0:
        doubts.append("the floor E cannot be told from 0")
    return doubts


def cleared(e: Estimate, least: float) -> Estimate:
    """An exact 0 for what nobody could tell from 0: an interval's end below `least`, or a value that ran off to 1e-50."""

    def kept(v: float | None, least: float) -> float | None:
        return v if v is None or v >= least else 0.0

    value = kept(e.value, least if e.low is None else 1e-4 * least)
    return Estimate(value=value, low=kept(e.low, least), high=kept(e.high, 1e-4 * least))


def estimate(value: float, sample: np.ndarray, confidence: float) -> Estimate:
    low, high = np.quantile(sample, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value=rounded(value), low=rounded(low), high=rounded(high))


def rounded(value: float, digits: int = 12) -> float:
    """So that fit.json does not carry the last bits of a floating-point library."""
    return float(f"{float(value):.{digits}g}")


def span(values: np.ndarray) -> str:
    low, high = f"{values.min():,.0f}", f"{values.max():,.0f}"
    return low if low == high else f"{low} to {high}"
