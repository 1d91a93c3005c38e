"""The fit of laws to points: values, intervals, whether the points determine them, and which law to choose."""

from __future__ import annotations

import numpy as np

from gnnscale.contract.scaling_results import Estimate, LawFit, Point
from gnnscale.contract.settings import ScalingSettings
from gnnscale.scaling.fitting.fitted import FittedLaw, Observations
from gnnscale.scaling.fitting.identifiability import EXPONENT_BOUNDS, design_doubts, interval_doubts, shape_doubts
from gnnscale.scaling.fitting.laws import Law
from gnnscale.scaling.fitting.optimum import Optimum, find_optimum, fit_resamples
from gnnscale.scaling.fitting.selection import information_criteria, predict_held_out
from gnnscale.scaling.grid import WHERE_D, WHERE_N, group_by_cell

SINGLE_AXIS_LAWS = (("PowerN", WHERE_N), ("PurePowerN", WHERE_N), ("PowerD", WHERE_D), ("PurePowerD", WHERE_D))
# Parts of E + A/N^alpha + B/D^beta.
NESTED_LAWS = ("PurePowers", "EqualPowers", "PowerD", "PurePowerD", "PowerN", "PurePowerN")
MAX_STORED_RESAMPLES = 200  # resampled parameters kept in fit.json: enough for a 95 % band, and a small file
MIN_FLOOR_SHARE = 0.01  # of the smallest target: a floor whose interval reaches below cannot be distinguished from 0


def choose_law(fitted: list[FittedLaw]) -> list[FittedLaw]:
    """Mark the chosen law: the joint one if the points determine it, else the determined part of it of least AICc."""
    determined = [f for f in fitted if f.entry.identified]
    best = min(determined, key=lambda f: np.inf if f.entry.aicc is None else f.entry.aicc, default=None)
    return [mark_chosen(f) if f is best else f for f in fitted]


def mark_chosen(f: FittedLaw) -> FittedLaw:
    chosen = f.entry.model_copy(update={"chosen": True, "replicas": stored_resamples(f.replicas)})
    return f._replace(entry=chosen)


def stored_resamples(replicas: np.ndarray | None) -> tuple[tuple[float, ...], ...]:
    """Return the resampled parameters that fit.json keeps of a chosen law."""
    if replicas is None:
        return ()
    return tuple(tuple(round_to_digits(value, 6) for value in row) for row in replicas[:MAX_STORED_RESAMPLES])


def to_observations(law: Law, points: list[Point], target: str) -> Observations:
    """Turn points into sizes and losses.

    N is body parameters and D unique training structures. For a law that has U as well, U is these and D the structures
    seen; less than an epoch leaves some out of U too.
    """
    rows = [(p.body_parameters, p.structures, p.epochs, getattr(p, target)) for p in points]
    n, given, epochs, loss = np.array(rows, float).T
    seen = given * epochs
    at = {"N": n, "D": seen, "U": np.minimum(given, seen)} if "U" in law.axes else {"N": n, "D": given}
    number = {cell: k for k, cell in enumerate(group_by_cell(points))}
    return Observations(at, loss, np.array([number[p.body_parameters, p.structures, p.epochs] for p in points]))


def fit_law(
    law: Law,
    points: list[Point],
    target: str,
    where: str,
    excluded: dict[str, str],
    settings: ScalingSettings,
    stream: int,
) -> FittedLaw:
    """Fit the law to a target of a study's points; `where` names these points, `stream` the random numbers."""
    data = to_observations(law, points, target)
    unit = "structures seen" if "U" in law.axes else "unique training structures"
    n, d = data.at["N"], data.at["D"]
    entry, optimum, replicas = fit_data(law, data, settings, stream)
    entry = entry.model_copy(
        update={
            "target": target,
            "where": f"{where}: N = body parameters {format_range(n)}, D = {unit} {format_range(d)}",
            "points": tuple(p.run for p in points),
            "excluded": excluded,
        }
    )
    return FittedLaw(entry, law, optimum.values, replicas, tuple(points))


def fit_data(
    law: Law, data: Observations, settings: ScalingSettings, stream: int = 0
) -> tuple[LawFit, Optimum, np.ndarray | None]:
    """Fit the law to these data; the caller adds to the entry which points they are."""
    at, loss, cells = data.at, data.loss, data.cell.max() + 1
    optimum = find_optimum(law, at, loss, weights=data.weights)
    doubts = design_doubts(law, law.columns(**at)) + shape_doubts(law, optimum, at, loss)
    # where the points leave a parameter open, resamples of them would give it an interval without meaning
    replicas, undetermined = (None, 0) if doubts else bootstrap(law, data, optimum, settings, stream)
    estimates = {name: Estimate(value=round_to_digits(v)) for name, v in zip(law.parameters, optimum.values)}
    if replicas is not None:
        estimates = {
            name: to_estimate(v, column, settings.confidence)
            for name, v, column in zip(law.parameters, optimum.values, replicas.T)
        }
    estimates |= {name: replace_by_zero(estimates[name], EXPONENT_BOUNDS[0]) for name in law.exponents}
    if law.floor:
        estimates["E"] = replace_by_zero(estimates["E"], MIN_FLOOR_SHARE * loss.min())
    doubts += interval_doubts(law, estimates)
    notes = list(doubts)
    if undetermined:
        notes.append(
            f"{undetermined} of {settings.bootstrap} resamples do not determine the parameters, and were left out"
        )
    if replicas is not None and cells < len(law.parameters) + 3:
        notes.append(f"{cells} points for {len(law.parameters)} parameters: the intervals are too narrow")
    if optimum.at_optimum < 0.5:
        notes.append(f"only {optimum.at_optimum:.0%} of the starts reached the best optimum")
    aicc, bic = information_criteria(optimum.objective, cells, len(law.parameters))
    entry = LawFit(
        law=law.name,
        formula=law.formula,
        target="loss",
        where="all points",
        points=(),
        excluded={},
        estimates=estimates,
        objective=round_to_digits(optimum.objective),
        log_rms=round_to_digits(optimum.log_rms),
        at_optimum=round_to_digits(optimum.at_optimum),
        aicc=None if aicc is None else round_to_digits(aicc, 9),
        bic=None if bic is None else round_to_digits(bic, 9),
        held_out=predict_held_out(law, at, loss, data.weights),
        allocation=compute_allocation(law, optimum.values, replicas, settings.confidence),
        identified=not doubts,
        notes=tuple(notes),
    )
    return entry, optimum, replicas


def compute_allocation(law: Law, values: np.ndarray, replicas: np.ndarray | None, confidence: float) -> Estimate | None:
    """Compute a = beta/(alpha + beta) for laws in which the best N goes as C^a for C ~ N D."""
    if law.name not in ("Hoffmann", "OverTraining", "Kaplan", "PurePowers"):
        return None
    if len(law.exponents) == 1:
        return Estimate(value=0.5)
    alpha, beta = (law.parameters.index(name) for name in law.exponents)
    value = round_to_digits(values[beta] / (values[alpha] + values[beta]))
    if replicas is None:
        return Estimate(value=value)
    return to_estimate(value, replicas[:, beta] / (replicas[:, alpha] + replicas[:, beta]), confidence)


def bootstrap(
    law: Law, data: Observations, optimum: Optimum, settings: ScalingSettings, stream: int
) -> tuple[np.ndarray | None, int]:
    """Fit resamples of the cells, each with all its seeds; return their parameters and how many determine none.

    The scatter between seeds is in the means of cells already: drawing within a cell too would count it twice. There is
    no interval without a cell to spare, nor when most resamples fail: the others would not be a sample of what could have
    been measured.
    """
    count = data.cell.max() + 1
    if not settings.bootstrap or count <= len(law.parameters):
        return None, 0
    rng = np.random.default_rng([settings.seed, stream])
    weights = rng.multinomial(count, np.full(count, 1 / count), size=settings.bootstrap)[:, data.cell] * data.weights
    x = law.columns(**data.at)
    determined = np.array([not design_doubts(law, x[row > 0]) for row in weights])
    if determined.mean() < 0.5:
        return None, int((~determined).sum())
    return fit_resamples(law, data.at, data.loss, optimum, weights[determined]), int((~determined).sum())


def replace_by_zero(e: Estimate, least: float) -> Estimate:
    """Replace by 0 what cannot be distinguished from it: an interval's end below `least`, or a value that ran off to 1e-50."""
    smallest_value = least if e.low is None else 1e-4 * least
    return Estimate(
        value=e.value if e.value >= smallest_value else 0.0,
        low=None if e.low is None else e.low if e.low >= least else 0.0,
        high=None if e.high is None else e.high if e.high >= 1e-4 * least else 0.0,
    )


def to_estimate(value: float, sample: np.ndarray, confidence: float) -> Estimate:
    low, high = central_interval(sample, confidence)
    return Estimate(value=round_to_digits(value), low=round_to_digits(low), high=round_to_digits(high))


def central_interval(sample: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the quantiles between which the share `confidence` of a sample lies."""
    low, high = np.quantile(sample, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def round_to_digits(value: float, digits: int = 12) -> float:
    """Round, so that fit.json does not carry the last bits of a floating-point library."""
    return float(f"{float(value):.{digits}g}")


def format_range(values: np.ndarray) -> str:
    low, high = f"{values.min():,.0f}", f"{values.max():,.0f}"
    return low if low == high else f"{low} to {high}"
