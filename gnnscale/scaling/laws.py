"""Scaling laws L(N, D) and their optimum: Huber loss of log L in log-sum-exp form (Hoffmann et al., arXiv 2203.15556).

N is body parameters, D unique training structures. A law is fitted to many weightings of the points at once: several
starts, or the resamples of a bootstrap, are rows of one batched BFGS, which makes a thousand refits as cheap as ten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls
from scipy.special import expit, logit

DELTA = 1e-3  # of the Huber loss, on log L: Hoffmann et al., so that published fits can be compared
COEFFICIENT, EXPONENT = {"N": "A", "D": "B"}, {"N": "alpha", "D": "beta"}
LIMIT = (
    3.0  # exponents lie in (0, 3]: steeper, a term is a step at the smallest sizes, and its coefficient has no meaning
)
START_EXPONENTS = (0.1, 0.3, 0.7, 1.5)
ROWS = 2**17  # resamples x points evaluated at once: small enough for the cache, large enough for numpy


@dataclass(frozen=True)
class PowerSum:
    """A sum of powers, with or without a floor: E + A/N^alpha + B/D^beta and its parts.

    In the fit theta = (e, a, t, b, u) with E = exp(e), alpha = LIMIT / (1 + exp(-t)) and
    A/N^alpha = exp(a - alpha (log N - centre)): the centre takes the correlation of a and alpha out, without which BFGS
    needs several times the steps.
    """

    name: str
    axes: str  # which of "ND" the law depends on
    floor: bool
    tied: bool = False  # one exponent, gamma, for both axes

    @property
    def parameters(self) -> tuple[str, ...]:
        each = [p for axis in self.axes for p in (COEFFICIENT[axis], self.exponent(axis))]
        return ("E",) * self.floor + tuple(dict.fromkeys(each))

    @property
    def exponents(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.exponent(axis) for axis in self.axes))

    @property
    def formula(self) -> str:
        return "L = " + "E + " * self.floor + " + ".join(f"{COEFFICIENT[i]}/{i}^{self.exponent(i)}" for i in self.axes)

    @property
    def places(self) -> list[tuple[int, int]]:
        """Where coefficient and exponent of each axis are among the parameters."""
        return [tuple(map(self.parameters.index, (COEFFICIENT[i], self.exponent(i)))) for i in self.axes]

    def exponent(self, axis: str) -> str:
        return "gamma" if self.tied else EXPONENT[axis]

    def columns(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """log of what the law depends on  # (points, axes)"""
        return np.log(np.stack([np.asarray({"N": n, "D": d}[axis], float) for axis in self.axes], axis=1))

    def log_loss(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log L  # (rows, points), and its gradient by theta  # (rows, parameters, points)"""
        terms = [np.broadcast_to(theta[:, :1], (len(theta), len(x)))] * self.floor
        power = LIMIT * expit(theta)  # read where theta holds an exponent
        for (coefficient, exponent), column in zip(self.places, x.T):
            terms.append(theta[:, coefficient, None] - power[:, exponent, None] * column)
        top = np.maximum.reduce(terms)
        shares = [np.exp(term - top) for term in terms]
        total = sum(shares)
        gradient = np.zeros((len(theta), theta.shape[1], len(x)))
        if self.floor:
            gradient[:, 0] = shares[0] / total
        for (coefficient, exponent), column, share in zip(self.places, x.T, shares[int(self.floor) :]):
            gradient[:, coefficient] = share / total
            slope = power[:, exponent, None] * (1 - power[:, exponent, None] / LIMIT)
            gradient[:, exponent] -= slope * gradient[:, coefficient] * column
        return top + np.log(total), gradient

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Variable projection: on a grid of exponents the rest is linear least squares, non-negative, of L/L_i."""
        loss, rows = np.exp(y), []
        for exponents in product(START_EXPONENTS, repeat=len(self.exponents)):
            row = dict(zip(self.exponents, exponents))
            powers = [np.exp(-row[self.exponent(axis)] * c) for axis, c in zip(self.axes, x.T)]
            powers = [np.ones(len(x))] * self.floor + powers
            found = nnls(np.stack(powers, axis=1) / loss[:, None], np.ones(len(x)))[0]
            logs = np.log(np.maximum(found, 0.1 * loss.min()))  # a term that starts near zero hardly grows again
            row = {name: logit(p / LIMIT) for name, p in row.items()}
            row |= dict(zip(["E"] * self.floor + [COEFFICIENT[axis] for axis in self.axes], logs))
            rows.append([row[name] for name in self.parameters])
        return np.array(rows)

    def natural(self, theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """theta -> values in the order of `parameters`  # (rows, parameters)"""
        values = np.exp(np.clip(theta, -700, 700))
        for (coefficient, exponent), c in zip(self.places, centre):
            values[:, exponent] = LIMIT * expit(theta[:, exponent])
            values[:, coefficient] = np.exp(np.clip(theta[:, coefficient] + values[:, exponent] * c, -700, 700))
        return values

    def __call__(self, values: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """L at natural parameter values (rows, parameters) for points n, d  # (rows, points)"""
        values, x = np.atleast_2d(values), self.columns(n, d)
        total = np.broadcast_to(values[:, :1] if self.floor else 0.0, (len(values), len(x)))
        for (coefficient, exponent), column in zip(self.places, x.T):
            total = total + values[:, coefficient, None] * np.exp(-values[:, exponent, None] * column)
        return total


# Another form (Kaplan, an interaction, a broken law) is another class with these methods and a row here.
LAWS = {
    law.name: law
    for law in (
        PowerSum("Hoffmann", "ND", floor=True),
        PowerSum("PowerN", "N", floor=True),
        PowerSum("PowerD", "D", floor=True),
        PowerSum("PurePowers", "ND", floor=False),
        PowerSum("EqualPowers", "ND", floor=False, tied=True),
        PowerSum("PurePowerN", "N", floor=False),
        PowerSum("PurePowerD", "D", floor=False),
    )
}


class Optimum(NamedTuple):
    values: np.ndarray  # in the order of law.parameters
    objective: float  # sum over points of Huber(log L_i - log L(N_i, D_i))
    log_rms: float
    at_optimum: float  # share of the starts that came to within 1e-4 of the best objective
    spread: float  # range of the exponents among optima as good as the best: Huber's valley may be flat
    theta: np.ndarray  # as fitted, for warm starts
    others: np.ndarray  # two unlike starts, for the same


def objective(law: PowerSum, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> Callable:
    """(theta, rows of weights) -> sum of w Huber(residual) / DELTA  # (rows,), its gradient  # (rows, parameters)"""

    def value_and_slope(theta: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, slopes = np.empty(len(theta)), np.empty(theta.shape)
        chunk = max(1, ROWS // len(x))
        for i in range(0, len(theta), chunk):
            part = slice(i, i + chunk)
            prediction, gradient = law.log_loss(theta[part], x)
            scaled = (prediction - y) / DELTA
            bounded = np.clip(scaled, -1, 1)
            w = weights[rows[part]]
            values[part] = DELTA * (w * bounded * (scaled - 0.5 * bounded)).sum(axis=1)
            slopes[part] = np.einsum("bn,bpn->bp", w * bounded, gradient)
        return values, slopes

    return value_and_slope


def optimum(law: PowerSum, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> Optimum:
    """The best of many starts, for points of equal weight."""
    raw, y = law.columns(n, d), np.log(np.asarray(loss, float))
    centre = raw.mean(axis=0)
    x = raw - centre
    starts = law.starts(x, y)
    function = objective(law, x, y, np.ones((1, len(y))))
    theta, value = minimise(lambda t, rows: function(t, np.zeros_like(rows)), starts)
    best = int(np.argmin(value))
    reached = value <= value[best] * (1 + 1e-4) + 1e-9
    ties = law.natural(theta[value <= value[best] * (1 + 1e-7) + 1e-12], centre)
    ties = ties[:, [law.parameters.index(name) for name in law.exponents]]
    residuals = law.log_loss(theta[best : best + 1], x)[0][0] - y
    return Optimum(
        values=law.natural(theta[best : best + 1], centre)[0],
        objective=float(value[best] * DELTA),
        log_rms=float(np.sqrt((residuals**2).mean())),
        at_optimum=float(reached.mean()),
        spread=float(np.ptp(ties, axis=0).max()),
        theta=theta[best],
        others=starts[[len(starts) // 3, (2 * len(starts)) // 3]],
    )


def resampled(law: PowerSum, n: np.ndarray, d: np.ndarray, loss: np.ndarray, found: Optimum, counts: np.ndarray):
    """Values for each row of counts (how often a point was drawn), from the optimum and two unlike starts."""
    raw, y = law.columns(n, d), np.log(np.asarray(loss, float))
    centre = raw.mean(axis=0)  # of the whole sample: only a choice of origin
    starts = np.stack([found.theta, *found.others])
    function = objective(law, raw - centre, y, np.asarray(counts, float))
    rows = np.repeat(np.arange(len(counts)), len(starts))
    # 120 steps: a few rows creep along a flat valley, and gain nothing that an interval would show
    many = np.tile(starts, (len(counts), 1))
    theta, value = minimise(lambda t, active: function(t, rows[active]), many, slope=1e-5, gain=1e-8, steps=120)
    best = value.reshape(-1, len(starts)).argmin(axis=1)
    return law.natural(theta.reshape(len(counts), len(starts), -1)[np.arange(len(counts)), best], centre)


def minimise(function: Callable, starts: np.ndarray, slope: float = 1e-10, gain: float = 1e-15, steps: int = 400):
    """BFGS from every row of starts at once; a row stops when its gradient is below `slope` or the relative gain is."""
    theta = np.array(starts, float)
    every = np.arange(len(theta))
    value, gradient = function(theta, every)
    inverse = np.tile(np.eye(theta.shape[1]) / (1 + np.abs(gradient).max(axis=1))[:, None, None], 1)
    active = every
    for _ in range(steps):
        active = active[np.abs(gradient[active]).max(axis=1) > slope]
        if not len(active):
            break
        move = -np.einsum("bij,bj->bi", inverse[active], gradient[active])
        descent = np.einsum("bi,bi->b", move, gradient[active])
        uphill = descent >= 0  # rounding in the inverse: start it again
        move[uphill] = -gradient[active[uphill]]
        inverse[active[uphill]] = np.eye(theta.shape[1])
        move /= np.maximum(1, np.abs(move).max(axis=1) / 2)[:, None]  # a step in log space is at most e^2
        length, new_value, new_gradient = search(function, active, theta[active], move, value[active], gradient[active])
        s, dg = length[:, None] * move, new_gradient - gradient[active]
        inverse[active] = updated(inverse[active], s, dg)
        gained = value[active] - new_value
        theta[active] += s
        value[active], gradient[active] = new_value, new_gradient
        active = active[gained > gain * np.abs(new_value)]
    return theta, value


def search(function, active, theta, move, value, gradient):
    """Backtracking by quadratic interpolation, each row on its own; length 0 where no decrease was found."""
    descent = np.einsum("bi,bi->b", move, gradient)
    length, trial = np.zeros(len(theta)), np.ones(len(theta))
    new_value, new_gradient = value.copy(), gradient.copy()
    pending = np.arange(len(theta))
    for _ in range(30):
        v, g = function(theta[pending] + trial[pending, None] * move[pending], active[pending])
        good = v <= value[pending] + 1e-4 * trial[pending] * descent[pending]
        done = pending[good]
        length[done], new_value[done], new_gradient[done] = trial[done], v[good], g[good]
        pending, v = pending[~good], v[~good]
        if not len(pending):
            break
        t = trial[pending]
        best = -0.5 * descent[pending] * t**2 / np.maximum(v - value[pending] - descent[pending] * t, 1e-300)
        trial[pending] = np.clip(best, 0.1 * t, 0.5 * t)
    return length, new_value, new_gradient


def updated(inverse: np.ndarray, s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The BFGS update of the inverse Hessian, where the curvature along the step is positive."""
    sy = np.einsum("bi,bi->b", s, y)
    ok = sy > 1e-12 * np.sqrt((s**2).sum(axis=1) * (y**2).sum(axis=1))
    rho = np.where(ok, 1 / np.where(ok, sy, 1), 0)[:, None, None]
    hy = np.einsum("bij,bj->bi", inverse, y)
    yhy = np.einsum("bi,bi->b", y, hy)[:, None, None]
    ss = s[:, :, None] * s[:, None, :]
    hys = hy[:, :, None] * s[:, None, :]
    return inverse + (1 + rho * yhy) * rho * ss - rho * (hys + hys.transpose(0, 2, 1))
