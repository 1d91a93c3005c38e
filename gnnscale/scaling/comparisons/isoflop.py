"""The optimal size for a compute budget, straight from runs of equal compute, and its growth with compute.

As Porian et al., arXiv 2406.19146: Akima interpolation of log loss over log size for each budget, least squares of
log n* on log C. No law L(N, D) is assumed, so it is the check on one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gnnscale.contract.scaling_results import Estimate

INTERPOLATED_SIZES = 2000  # places between the smallest and the largest size: 0.3 % apart over a factor of 400


class BudgetMinimum(NamedTuple):
    """The best size of one compute budget."""

    size: float
    loss: float
    inside: bool  # true if there are worse runs on both sides; else the best may lie beyond them


class Growth(NamedTuple):
    """A power law of compute: size = coefficient C^exponent."""

    exponent: Estimate
    coefficient: float
    r2: float


def find_minimum(sizes: np.ndarray, losses: np.ndarray) -> BudgetMinimum:
    """Find the best size among runs of one budget; of several runs of one size the best counts."""
    x, y = np.log(sizes), np.log(losses)
    x, group = np.unique(x, return_inverse=True)
    y = np.array([y[group == k].min() for k in range(len(x))])
    best = int(np.argmin(y))
    if len(x) < 3 or not 0 < best < len(x) - 1:
        return BudgetMinimum(float(np.exp(x[best])), float(np.exp(y[best])), False)
    from scipy.interpolate import Akima1DInterpolator  # it imports scipy.optimize, as in fitting/laws.py

    fine = np.linspace(x[0], x[-1], INTERPOLATED_SIZES)
    curve = Akima1DInterpolator(x, y)(fine)
    best = int(np.argmin(curve))
    return BudgetMinimum(float(np.exp(fine[best])), float(np.exp(curve[best])), True)


def fit_growth(
    compute: np.ndarray,
    sizes: np.ndarray,
    spread: np.ndarray | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Growth:
    """Fit least squares in logarithms, weighted by 1/spread^2 where the standard deviation of each log size is known.

    The interval comes from sizes drawn with that spread; where it is not known, from resampled budgets.
    """
    x, y = np.log(compute), np.log(sizes)
    weights = np.ones(len(x)) if spread is None else 1 / np.asarray(spread, float) ** 2
    slope, level = fit_lines(x, y[None], weights[None])
    rng = np.random.default_rng(seed)
    if len(x) < 3:
        ends = None
    elif spread is not None:
        ends = fit_lines(x, y + spread * rng.normal(size=(resamples, len(x))), weights[None])[0]
    else:
        counts = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=resamples)
        ends = fit_lines(x, y[None], counts[(counts > 0).sum(axis=1) > 1].astype(float))[0]
    low, high = (None, None) if ends is None else np.quantile(ends, [(1 - confidence) / 2, (1 + confidence) / 2])
    residual = y - level[0] - slope[0] * x
    mean = np.average(y, weights=weights)
    r2 = 1 - np.average(residual**2, weights=weights) / np.average((y - mean) ** 2, weights=weights)
    return Growth(Estimate(value=slope[0], low=low, high=high), float(np.exp(level[0])), float(r2))


def fit_lines(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return slopes and levels of weighted straight lines, one for each row of y or of weights."""
    total = weights.sum(axis=1)
    mx, my = (weights * x).sum(axis=1) / total, (weights * y).sum(axis=1) / total
    dx = x - mx[:, None]
    slope = (weights * dx * (y - my[:, None])).sum(axis=1) / (weights * dx**2).sum(axis=1)
    return slope, my - slope * mx
