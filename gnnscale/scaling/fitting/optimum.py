"""The best parameters of a law for given points and for resamples of them: Huber loss of log L, or squares of L."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from gnnscale.scaling.fitting.bfgs import minimise
from gnnscale.scaling.fitting.laws import Law

MAX_ROWS_AT_ONCE = 2**17  # resamples x points evaluated at once: small enough for the cache, large enough for numpy
Sizes = dict[str, np.ndarray]  # axis -> sizes of the points


class Residual(NamedTuple):
    """The residual of a fit: its scale and whether it is of log L."""

    delta: float = 1e-3  # where Huber's loss turns linear: Hoffmann et al., so that published fits can be compared
    log: bool = True  # of log L; else of L


HUBER, SQUARES = Residual(), Residual(delta=1e3, log=False)


class Optimum(NamedTuple):
    """The best parameters of a law for its points, and how surely they are the best."""

    values: np.ndarray  # in the order of law.parameters
    objective: float  # sum over points of weight x Huber(residual)
    log_rms: float
    at_optimum: float  # share of the starts that came within 1e-4 of the best objective
    spread: float  # range of the exponents among optima as good as the best: Huber's valley may be flat
    theta: np.ndarray  # as fitted, for warm starts
    inverse: np.ndarray  # its inverse Hessian, for the same
    others: np.ndarray  # two unlike starts, for the same


def make_objective(law: Law, x: np.ndarray, y: np.ndarray, weights: np.ndarray, residual: Residual = HUBER) -> Callable:
    """Make the function that a fit minimises.

    (theta, rows of weights) -> sum of w Huber(residual) / delta  # (rows,), its gradient  # (rows, parameters)
    """
    delta = residual.delta

    def value_and_slope(theta: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, slopes = np.empty(len(theta)), np.empty(theta.shape)
        chunk = max(1, MAX_ROWS_AT_ONCE // len(x))
        for i in range(0, len(theta), chunk):
            part = slice(i, i + chunk)
            prediction, gradient = law.log_loss(theta[part], x)
            slope = 1.0
            if residual.log:
                scaled = (prediction - y) / delta
            else:
                slope = np.exp(np.minimum(prediction, 300.0))
                scaled = (slope - np.exp(y)) / delta
            bounded = np.clip(scaled, -1, 1)
            w = weights[rows[part]]
            values[part] = delta * (w * bounded * (scaled - 0.5 * bounded)).sum(axis=1)
            slopes[part] = np.matmul(gradient, (w * bounded * slope)[:, :, None])[:, :, 0]
        return values, slopes

    return value_and_slope


def find_optimum(
    law: Law,
    at: Sizes,
    loss: np.ndarray,
    *,
    residual: Residual = HUBER,
    weights: np.ndarray | None = None,
    exponents: np.ndarray | None = None,
) -> Optimum:
    """Find the best of many starts: those of the law, or at the given exponents  # (starts, exponents)."""
    raw, y = law.columns(**at), np.log(np.asarray(loss, float))
    w = np.ones(len(y)) if weights is None else np.asarray(weights, float)
    centre = law.centre(raw)
    x = raw - centre
    starts = law.starts(x, y, exponents)
    if law.coarse:
        starts = minimise(
            with_one_weighting(make_objective(law, x, y, w[None], residual._replace(delta=1.0))),
            starts,
            steps=law.coarse,
        )[0]
    theta, value, inverse = minimise(with_one_weighting(make_objective(law, x, y, w[None], residual)), starts)
    best = int(np.argmin(value))
    reached = value <= value[best] * (1 + 1e-4) + 1e-9
    ties = law.natural(theta[value <= value[best] * (1 + 1e-7) + 1e-12], centre)
    ties = ties[:, [law.parameters.index(name) for name in law.exponents]]
    residuals = law.log_loss(theta[best : best + 1], x)[0][0] - y
    return Optimum(
        values=law.natural(theta[best : best + 1], centre)[0],
        objective=float(value[best] * residual.delta),
        log_rms=float(np.sqrt(np.average(residuals**2, weights=w))),
        at_optimum=float(reached.mean()),
        spread=float(np.ptp(ties, axis=0).max()),
        theta=theta[best],
        inverse=inverse[best],
        others=starts[[len(starts) // 3, (2 * len(starts)) // 3]],
    )


def with_one_weighting(function: Callable) -> Callable:
    """Adapt an objective to problems that differ in their starts alone."""
    return lambda theta, rows: function(theta, np.zeros_like(rows))


def fit_resamples(
    law: Law, at: Sizes, loss: np.ndarray, optimum: Optimum, weights: np.ndarray, residual: Residual = HUBER
) -> np.ndarray:
    """Fit each row of weights (how often a point was drawn), from the optimum and two unlike starts."""
    raw, y = law.columns(**at), np.log(np.asarray(loss, float))
    centre = law.centre(raw)  # of the whole sample: only a choice of origin
    function = make_objective(law, raw - centre, y, np.asarray(weights, float), residual)
    every = np.arange(len(weights))
    # 120 steps: a few rows creep along a flat valley, and gain nothing that an interval would show
    quick = partial(minimise, slope=1e-5, gain=1e-8)
    warm = np.tile(optimum.theta, (len(weights), 1))
    theta, value, _ = quick(function, warm, steps=120, inverse=np.tile(optimum.inverse, (len(weights), 1, 1)))
    for start in optimum.others:
        other, other_value, inverse = quick(function, np.tile(start, (len(weights), 1)), steps=20)
        # only those continue that promise as much from another place: nearly all are on their way to the same optimum
        promising = every[(other_value < 1.02 * value + 1e-9) & (np.abs(other - theta).max(axis=1) > 0.1)]
        if len(promising):
            far, least, _ = quick(
                lambda t, rows, chosen=promising: function(t, chosen[rows]),
                other[promising],
                steps=120,
                inverse=inverse[promising],
            )
            better = least < value[promising]
            theta[promising[better]], value[promising[better]] = far[better], least[better]
    return law.natural(theta, centre)
