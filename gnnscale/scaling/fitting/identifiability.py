"""The doubts about a fit, in words: what the sizes of the points, the residuals and the intervals leave undetermined."""

from __future__ import annotations

import math

import numpy as np

from gnnscale.contract.scaling_results import Estimate
from gnnscale.scaling.fitting.laws import MAX_EXPONENT, Law
from gnnscale.scaling.fitting.optimum import Optimum, Sizes
from gnnscale.scaling.words import format_estimate

EXPONENT_BOUNDS = (0.01, 0.99 * MAX_EXPONENT)  # an exponent whose interval reaches beyond them is not called determined
MAX_EXPONENT_FACTOR = 3.0  # nor one whose interval spans a larger factor
MAX_OTHER_FACTOR = 10.0  # the same for parameters that are no exponents
MAX_RESIDUAL = 0.05  # rms residual of log L above which a law does not hold: several times the usual spread of seeds
MAX_CORRELATION = 0.98  # correlation of log N and log D above which their effects cannot be separated


def design_doubts(law: Law, x: np.ndarray) -> list[str]:
    """List what the sizes of the points alone leave undetermined."""
    doubts = []
    distinct = [len(set(column)) for column in x.T.tolist()]  # a study asks thousands of times: np.unique takes longer
    sizes = len(set(map(tuple, x.tolist())))
    # a sum of powers is known by its differences along each axis: k values of N determine k - 1 of them
    needed = 2 + law.floor
    for axis, k in zip(law.axes, distinct):
        if k < (2 if axis == "U" else needed):
            doubts.append(f"{k} values of {axis}, where the law needs {2 if axis == 'U' else needed}")
    if not doubts and sum(distinct) - len(law.axes) + 1 < len(law.parameters) and len(law.axes) == 2:
        doubts.append(f"{' x '.join(map(str, distinct))} values of N x D for {len(law.parameters)} parameters")
    if not doubts and sizes < len(law.parameters):
        doubts.append(f"{sizes} points for {len(law.parameters)} parameters")
    if not doubts and len(law.axes) > 1:
        a, b = (x[:, :2] - x[:, :2].mean(axis=0)).T
        r = float(a @ b / math.sqrt((a @ a) * (b @ b)))
        if abs(r) > MAX_CORRELATION:
            doubts.append(
                f"N and D vary together (correlation of their logarithms {r:.3f}): which of them helps is not determined"
            )
    return doubts


def shape_doubts(law: Law, optimum: Optimum, at: Sizes, loss: np.ndarray) -> list[str]:
    """List doubts of the fit: no point to spare, a size that moves the target less than the residuals, or no single optimum."""
    doubts = []
    sizes = len(np.unique(law.columns(**at), axis=0))
    if sizes == len(law.parameters):
        doubts.append(f"{sizes} points for {sizes} parameters: it passes through them and tests nothing")
    if optimum.spread > 0.01:
        doubts.append(f"the optimum is not unique: exponents that differ by {optimum.spread:.2g} fit equally well")
    for axis in law.axes.replace("U", ""):
        share = change_along(law, optimum.values, at, axis) / np.median(loss)
        if share < max(optimum.log_rms, 1e-4):
            doubts.append(
                f"over the points {axis} moves the target by {share:.1%}, no more than the residuals "
                f"({optimum.log_rms:.1%} rms)"
            )
    return doubts


def change_along(law: Law, values: np.ndarray, at: Sizes, axis: str) -> float:
    """Return by how much the law changes over the range of one size, the others at their middle."""
    ends = {name: np.full(2, np.median(column)) for name, column in at.items()} | {
        axis: np.array([at[axis].min(), at[axis].max()], float)
    }
    if "U" in law.axes and axis == "D":
        ends["U"] = np.minimum(ends["U"], ends["D"])
    return float(np.abs(np.diff(law(values, **ends)[0]))[0])


def interval_doubts(law: Law, estimates: dict[str, Estimate]) -> list[str]:
    doubts = []
    for name in law.exponents:
        e = estimates[name]
        low, high = e.interval
        if high > EXPONENT_BOUNDS[1]:
            doubts.append(f"{name}, {format_estimate(e)}, reaches its bound of {MAX_EXPONENT:g}")
        elif low < EXPONENT_BOUNDS[0]:
            doubts.append(f"{name} cannot be distinguished from 0")
        elif high > MAX_EXPONENT_FACTOR * low:
            doubts.append(f"the interval of {name}, {format_estimate(e)}, spans a factor {high / low:.1f}")
    for name in ("r_D", "r_N", "K", "w"):  # repetitions, place and width of a break
        if name not in estimates or not estimates[name].has_interval:
            continue
        low, high = estimates[name].interval
        if high > MAX_OTHER_FACTOR * low:
            text = format_estimate(estimates[name])
            doubts.append(f"the interval of {name}, {text}, spans more than a factor of {MAX_OTHER_FACTOR:g}")
    if law.floor and estimates["E"].interval[0] == 0:
        doubts.append("the floor E cannot be distinguished from 0")
    return doubts
