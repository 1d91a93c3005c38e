"""The measured effect of a doubling of data or of parameters on a target, without any law."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # quantiles of Student's t; scipy.stats would take a third of a second to import

from gnnscale.contract.scaling_results import Point
from gnnscale.scaling.grid import average_seeds

MIN_SIZES = 3  # different sizes below which no law is fitted or judged


class DoublingGains(NamedTuple):
    """The shares that a doubling takes away from one target."""

    target: str
    corner: dict[str, float | None]  # from the largest model and data to their neighbours; None without a neighbour
    mean: dict[str, float]  # over the grid: the plane of least squares through log L over log N, log D
    difference: tuple[float, float] | None  # Student's interval of D's mean share less N's, from the plane's residuals

    @property
    def verdict(self) -> str:
        """The side whose doublings bring more on average: "data", "model", or "open"."""
        if self.difference is None:
            return "open"
        low, high = self.difference
        return "data" if low > 0 else "model" if high < 0 else "open"


def measure_doublings(target: str, runs: tuple[Point, ...], confidence: float) -> DoublingGains:
    """Measure both doublings at the corner of the largest model and data, and on average over the grid."""
    points = average_seeds(runs, target)
    n, d = (np.log2([getattr(p, name) for p in points]) for name in ("body_parameters", "structures"))
    corner = points[int(np.argmax(np.round((n - n.min()) / (np.ptp(n) or 1) + (d - d.min()) / (np.ptp(d) or 1), 9)))]
    y = np.log2([getattr(p, target) for p in points])
    x = np.stack([np.ones(len(y)), n - n.mean(), d - d.mean()], axis=1)  # (points, 3)
    slopes = np.linalg.lstsq(x, y, rcond=None)[0]
    mean = 1 - 2**slopes
    difference = None
    spare = len(y) - 3
    if spare and min(len(set(n)), len(set(d))) >= MIN_SIZES and np.linalg.matrix_rank(x) == 3:
        covariance = np.linalg.inv(x.T @ x) * ((y - x @ slopes) ** 2).sum() / spare
        by_slopes = math.log(2) * np.array([0, 2 ** slopes[1], -(2 ** slopes[2])])  # derivative of the difference
        reach = stdtrit(spare, (1 + confidence) / 2) * math.sqrt(by_slopes @ covariance @ by_slopes)
        difference = (float(mean[2] - mean[1] - reach), float(mean[2] - mean[1] + reach))
    along = {axis: gain_along(points, target, corner, axis) for axis in "ND"}
    return DoublingGains(target, along, {"N": float(mean[1]), "D": float(mean[2])}, difference)


def gain_along(points: list[Point], target: str, at: Point, axis: str) -> float | None:
    """Return 1 - 2^slope, the slope of log target from a point to its smaller neighbour along one axis of the grid."""
    along, across = ("body_parameters", "structures") if axis == "N" else ("structures", "body_parameters")
    line = [p for p in points if getattr(p, across) == getattr(at, across) and getattr(p, along) < getattr(at, along)]
    if not line:
        return None
    before = max(line, key=lambda p: getattr(p, along))
    rise = math.log(getattr(at, target) / getattr(before, target))
    return 1 - 2 ** (rise / math.log(getattr(at, along) / getattr(before, along)))
