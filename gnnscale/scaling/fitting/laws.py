"""Scaling laws, one class for each form: log L with its gradient, where to start a fit, and L itself.

N is body parameters, D training structures (where U is given: those seen, each time they are), U the unique ones; of
points of other people, whatever they count. In a fit all rows of theta are parameters of one law, for one weighting of
the points each, and log-sizes x are taken relative to a centre: that takes the correlation of a coefficient and its
exponent out, without which BFGS needs several times the steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit

# Exponents lie in (0, MAX_EXPONENT): steeper, a term is a step at the smallest sizes, and its coefficient has no meaning.
MAX_EXPONENT = 3.0
START_EXPONENTS = (0.1, 0.3, 0.7, 1.5)
MAX_LOG = 700.0  # exp of more overflows


class Term(NamedTuple):
    """One term of a sum of powers: coefficient / (axis^exponent ...)."""

    coefficient: str
    powers: tuple[tuple[str, str], ...]  # (axis, exponent)


def to_exponent(theta: np.ndarray) -> np.ndarray:
    """Return an exponent from its free parameter."""
    return MAX_EXPONENT * expit(theta)


def exponent_slope(theta: np.ndarray) -> np.ndarray:
    return to_exponent(theta) * (1 - to_exponent(theta) / MAX_EXPONENT)


def bounded_exp(theta: np.ndarray) -> np.ndarray:
    return np.exp(np.clip(theta, -MAX_LOG, MAX_LOG))


def log_sum(terms: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the log of the sum of exp, and the share of each term in it."""
    top = np.maximum.reduce(terms)
    shares = [np.exp(term - top) for term in terms]
    total = sum(shares)
    return top + np.log(total), [share / total for share in shares]


def fit_log_coefficients(columns: list[np.ndarray], y: np.ndarray) -> np.ndarray:
    """Return logs of the non-negative least-squares coefficients of L/L_i (variable projection).

    None starts near zero, where it would hardly grow again.
    """
    loss = np.exp(y)
    from scipy.optimize import nnls  # a third of a second, which the report need not spend

    found = nnls(np.stack(columns, axis=1) / loss[:, None], np.ones(len(loss)))[0]
    return np.log(np.maximum(found, 0.1 * loss.min()))


@dataclass(frozen=True)
class Law(ABC):
    """A form of scaling law: its names, its values at natural parameters, and its logarithm as a fit needs it."""

    name: str
    axes: str  # which of "NDU" it depends on
    floor: bool
    coarse = 0  # steps by least squares before those of Huber's loss, whose slopes say less of where to go

    @property
    @abstractmethod
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters, in the order of their values."""

    @property
    @abstractmethod
    def exponents(self) -> tuple[str, ...]:
        """The names of those parameters that are exponents."""

    @property
    @abstractmethod
    def formula(self) -> str:
        """The law in plain letters, for people."""

    @abstractmethod
    def log_loss(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return log L  # (rows, points), and its gradient by theta  # (rows, parameters, points)."""

    @abstractmethod
    def start_at(self, x: np.ndarray, y: np.ndarray, exponents: dict[str, float]) -> np.ndarray:
        """Return rows of theta from which a fit may start, with these exponents."""

    @abstractmethod
    def natural(self, theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Turn theta into values in the order of `parameters`  # (rows, parameters)."""

    @abstractmethod
    def __call__(self, values: np.ndarray, **at: np.ndarray) -> np.ndarray:
        """Return L at natural parameter values (rows, parameters)  # (rows, points)."""

    def columns(self, **at: np.ndarray) -> np.ndarray:
        """Return the logs of the sizes on which the law depends  # (points, axes)."""
        return np.log(np.stack([np.asarray(at[axis], float) for axis in self.axes], axis=1))

    def centre(self, x: np.ndarray) -> np.ndarray:
        return x.mean(axis=0)

    def starts(self, x: np.ndarray, y: np.ndarray, exponents: Iterable[tuple[float, ...]] | None = None) -> np.ndarray:
        """Return rows of theta for each combination of exponents, by default of a grid."""
        each = product(START_EXPONENTS, repeat=len(self.exponents)) if exponents is None else exponents
        return np.concatenate([self.start_at(x, y, dict(zip(self.exponents, row))) for row in each])


@dataclass(frozen=True)
class PowerSum(Law):
    """A sum of powers, with or without a floor.

    It is E + A/N^alpha + B/D^beta (Hoffmann et al., arXiv 2203.15556), its parts, and with a product of powers beside
    them. theta = (e, a, t, b, u): E = exp(e), alpha = MAX_EXPONENT / (1 + exp(-t)), A/N^alpha = exp(a - alpha x).
    """

    terms: tuple[Term, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        each = [name for term in self.terms for name in (term.coefficient, *(e for _, e in term.powers))]
        return ("E",) * self.floor + tuple(dict.fromkeys(each))

    @property
    def exponents(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(e for term in self.terms for _, e in term.powers))

    @property
    def formula(self) -> str:
        parts = []
        for term in self.terms:
            below = "*".join(f"{axis}^{e}" for axis, e in term.powers)
            parts.append(f"{term.coefficient}/{below}" if len(term.powers) == 1 else f"{term.coefficient}/({below})")
        return "L = " + " + ".join(["E"] * self.floor + parts)

    @property
    def places(self) -> list[tuple[int, list[tuple[int, int]]]]:
        """The index of each term's coefficient among the parameters, and (axis, exponent) of its powers."""
        at, names = self.axes.index, self.parameters.index
        return [(names(t.coefficient), [(at(axis), names(e)) for axis, e in t.powers]) for t in self.terms]

    def log_loss(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        terms = [np.broadcast_to(theta[:, :1], (len(theta), len(x)))] * self.floor
        exponent, slope = to_exponent(theta), exponent_slope(theta)  # read where theta holds an exponent
        for c, powers in self.places:
            terms.append(theta[:, c, None] - sum(exponent[:, p, None] * x[:, axis] for axis, p in powers))
        total, shares = log_sum(terms)
        gradient = np.zeros((len(theta), theta.shape[1], len(x)))
        if self.floor:
            gradient[:, 0] = shares[0]
        for (c, powers), share in zip(self.places, shares[int(self.floor) :]):
            gradient[:, c] = share
            for axis, p in powers:
                gradient[:, p] -= slope[:, p, None] * share * x[:, axis]
        return total, gradient

    def start_at(self, x: np.ndarray, y: np.ndarray, exponents: dict[str, float]) -> np.ndarray:
        index = self.axes.index
        columns = [np.ones(len(x))] * self.floor
        columns += [np.exp(-sum(exponents[e] * x[:, index(axis)] for axis, e in t.powers)) for t in self.terms]
        row = {name: logit(p / MAX_EXPONENT) for name, p in exponents.items()}
        row |= dict(zip(["E"] * self.floor + [t.coefficient for t in self.terms], fit_log_coefficients(columns, y)))
        return np.array([[row[name] for name in self.parameters]])

    def natural(self, theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
        values = bounded_exp(theta)
        for c, powers in self.places:
            for _, p in powers:
                values[:, p] = to_exponent(theta[:, p])
            values[:, c] = bounded_exp(theta[:, c] + sum(values[:, p] * centre[axis] for axis, p in powers))
        return values

    def __call__(self, values: np.ndarray, **at: np.ndarray) -> np.ndarray:
        values, x = np.atleast_2d(values), self.columns(**at)
        total = np.broadcast_to(values[:, :1] if self.floor else 0.0, (len(values), len(x)))
        for c, powers in self.places:
            total = total + values[:, c, None] * np.exp(-sum(values[:, p, None] * x[:, axis] for axis, p in powers))
        return total


@dataclass(frozen=True)
class Kaplan(Law):
    """[(A/N)^(alpha/beta) + B/D]^beta (Kaplan et al., arXiv 2001.08361, eq. 1.5), with or without a floor beside it.

    theta = ([e,] a, t, b, u): without data limit L = exp(a - alpha x_N), without one of size exp(b - beta x_D).
    """

    @property
    def parameters(self) -> tuple[str, ...]:
        return ("E",) * self.floor + ("A", "alpha", "B", "beta")

    exponents = ("alpha", "beta")
    coarse = 40  # with these 99.5 to 100 % of random starts reach the optimum of the Chinchilla points, without 95 %

    @property
    def formula(self) -> str:
        return "L = " + "E + " * self.floor + "((A/N)^(alpha/beta) + B/D)^beta"

    def log_loss(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, t, b, u = theta[:, int(self.floor) :].T[:, :, None]
        alpha, beta = to_exponent(t), to_exponent(u)
        z1, z2 = (a - alpha * x[:, 0]) / beta, b / beta - x[:, 1]
        inner, (s1, s2) = log_sum([z1, z2])
        by_u = exponent_slope(u) * (inner - s1 * z1 - s2 * b / beta)
        slopes = [s1, -exponent_slope(t) * s1 * x[:, 0], s2, by_u]
        if not self.floor:
            return beta * inner, np.stack(slopes, axis=1)
        e = np.broadcast_to(theta[:, :1], inner.shape)
        total, (floor, rest) = log_sum([e, beta * inner])
        return total, np.stack([floor, *(rest * s for s in slopes)], axis=1)

    def start_at(self, x: np.ndarray, y: np.ndarray, exponents: dict[str, float]) -> np.ndarray:
        alpha, beta = (exponents[name] for name in self.exponents)
        free = [logit(alpha / MAX_EXPONENT), logit(beta / MAX_EXPONENT)]
        if self.floor:
            e, a, b = fit_log_coefficients([np.ones(len(x)), np.exp(-alpha * x[:, 0]), np.exp(-beta * x[:, 1])], y)
            return np.array([[e, a, free[0], b, free[1]]])
        # both terms alike at small sizes: where one starts small, fits end in the valley where it is nothing
        low = np.quantile(x, 0.1, axis=0)
        middle = y.mean() - beta * np.log(2)
        return np.array([[middle + alpha * low[0], free[0], middle + beta * low[1], free[1]]])

    def natural(self, theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
        values, k = bounded_exp(theta), int(self.floor)
        for coefficient, c in ((k, centre[0]), (k + 2, centre[1])):
            exponent = to_exponent(theta[:, coefficient + 1])
            values[:, coefficient + 1] = exponent
            values[:, coefficient] = bounded_exp(theta[:, coefficient] / exponent + c)
        return values

    def __call__(self, values: np.ndarray, **at: np.ndarray) -> np.ndarray:
        values, x = np.atleast_2d(values), self.columns(**at)
        a, alpha, b, beta = values[:, int(self.floor) :].T[:, :, None]
        limited = (a / np.exp(x[:, 0])) ** (alpha / beta) + b / np.exp(x[:, 1])
        return limited**beta + (values[:, :1] if self.floor else 0.0)


@dataclass(frozen=True)
class Broken(Law):
    """A power law with one break: E + A/X^gamma / (1 + (X/K)^(1/w))^(delta w) (Caballero et al., arXiv 2210.14891).

    Its exponent goes from gamma to gamma + delta around X = K, over a width w in log X. X is N or D.
    theta = (e, a, t, delta, k, log w)
    """

    exponents = ("gamma",)
    parameters = ("E", "A", "gamma", "delta", "K", "w")

    @property
    def formula(self) -> str:
        return f"L = E + A/{self.axes}^gamma/(1 + ({self.axes}/K)^(1/w))^(delta*w)"

    def log_loss(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        e, a, t, delta, k, log_w = theta.T[:, :, None]
        w, z = bounded_exp(log_w), (x[:, 0] - k) / bounded_exp(log_w)
        bend = np.logaddexp(0, z)
        term = a - to_exponent(t) * x[:, 0] - delta * w * bend
        total, (floor, rest) = log_sum([np.broadcast_to(e, term.shape), term])
        by_w = -delta * w * (bend - z * expit(z))
        slopes = (np.ones_like(z), -exponent_slope(t) * x[:, 0], -w * bend, delta * expit(z), by_w)
        return total, np.stack([floor, *(rest * s for s in slopes)], axis=1)

    def start_at(self, x: np.ndarray, y: np.ndarray, exponents: dict[str, float]) -> np.ndarray:
        """Start with breaks at four places, gentle and sharp, to steeper and to flatter slopes."""
        rows, gamma, low, high = [], exponents["gamma"], x.min(), x.max()
        for k, w, delta in product(np.linspace(low, high, 6)[1:-1], (0.03, 0.3), (-0.5 * gamma, 0.5, 3.0, 10.0)):
            bent = np.exp(-gamma * x[:, 0] - delta * w * np.logaddexp(0, (x[:, 0] - k) / w))
            e, a = fit_log_coefficients([np.ones(len(x)), bent], y)
            rows.append([e, a, logit(gamma / MAX_EXPONENT), delta, k, np.log(w)])
        return np.array(rows)

    def natural(self, theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
        values = bounded_exp(theta)
        values[:, 2], values[:, 3] = to_exponent(theta[:, 2]), theta[:, 3]
        values[:, 1] = bounded_exp(theta[:, 1] + values[:, 2] * centre[0])
        values[:, 4] = bounded_exp(theta[:, 4] + centre[0])
        return values

    def __call__(self, values: np.ndarray, **at: np.ndarray) -> np.ndarray:
        e, a, gamma, delta, k, w = np.atleast_2d(values).T[:, :, None]
        x = self.columns(**at)[:, 0]
        return e + a * np.exp(-gamma * x - delta * w * np.logaddexp(0, (x - np.log(k)) / w))


@dataclass(frozen=True)
class DataConstrained(Law):
    """The law of repeated data: E + A/N'^alpha + B/D'^beta (Muennighoff et al., arXiv 2305.16264).

    A datum seen again and a parameter beyond what U can use are worth less and less: D' = U (1 + r_D (1 - exp(-R/r_D))),
    R = D/U - 1 repetitions; N' alike, with the optimal N of U unique data in the place of U.
    theta = (e, a, t, b, u, log r_D, log r_N)
    """

    exponents = ("alpha", "beta")
    parameters = ("E", "A", "alpha", "B", "beta", "r_D", "r_N")
    formula = "L = E + A/N'^alpha + B/D'^beta"

    def centre(self, x: np.ndarray) -> np.ndarray:
        return np.array([x[:, 0].mean(), x[:, 2].mean(), x[:, 2].mean()])  # D/U must stay what it is

    def log_loss(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        e, a, t, b, u, log_rd, log_rn = theta.T[:, :, None]
        alpha, beta, (n, d, unique) = to_exponent(t), to_exponent(u), x.T
        best = (np.log(alpha / beta) + a - b + beta * unique) / alpha  # log of the optimal N for U
        capped = n > best
        used = np.where(capped, best, n)
        data, _, by_rd = saturate(unique, d, bounded_exp(log_rd))
        size, by_used, by_rn = saturate(used, n, bounded_exp(log_rn))
        floor = np.broadcast_to(e, size.shape)
        total, (s_e, s_n, s_d) = log_sum([floor, a - alpha * size, b - beta * data])
        through = np.where(capped, -alpha * by_used * s_n, 0.0) / alpha  # by alpha x (optimal log N)
        by_alpha = -s_n * size + through * (1 / alpha - best)
        by_beta = -s_d * data + through * (unique - 1 / beta)
        slopes = [s_e, s_n + through, exponent_slope(t) * by_alpha, s_d - through, exponent_slope(u) * by_beta]
        return total, np.stack([*slopes, -beta * s_d * by_rd, -alpha * s_n * by_rn], axis=1)

    def start_at(self, x: np.ndarray, y: np.ndarray, exponents: dict[str, float]) -> np.ndarray:
        rows = []
        for rd, rn in product((3.0, 20.0), repeat=2):
            data = saturate(x[:, 2], x[:, 1], np.array(rd))[0]
            columns = [np.exp(-exponents["alpha"] * x[:, 0]), np.exp(-exponents["beta"] * data)]
            e, a, b = fit_log_coefficients([np.ones(len(x)), *columns], y)
            t, u = (logit(exponents[name] / MAX_EXPONENT) for name in self.exponents)
            rows.append([e, a, t, b, u, np.log(rd), np.log(rn)])
        return np.array(rows)

    def natural(self, theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
        values = bounded_exp(theta)
        values[:, 2], values[:, 4] = to_exponent(theta[:, 2]), to_exponent(theta[:, 4])
        values[:, 1] = bounded_exp(theta[:, 1] + values[:, 2] * centre[0])
        values[:, 3] = bounded_exp(theta[:, 3] + values[:, 4] * centre[2])
        return values

    def __call__(self, values: np.ndarray, **at: np.ndarray) -> np.ndarray:
        e, a, alpha, b, beta, rd, rn = np.atleast_2d(values).T[:, :, None]
        n, d, u = (np.asarray(at[axis], float) for axis in self.axes)
        used = np.minimum(n, (alpha * a / (beta * b) * u**beta) ** (1 / alpha))
        size = used * (1 + rn * -np.expm1(-(n / used - 1) / rn))
        data = u * (1 + rd * -np.expm1(-(d / u - 1) / rd))
        return e + a / size**alpha + b / data**beta


def saturate(base: np.ndarray, whole: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log of exp(base) (1 + r (1 - exp(-(whole/base - 1)/r))) from logs, and its slopes by base and by log r."""
    ratio = np.exp(np.minimum(whole - base, 50.0))
    left = np.exp(-(ratio - 1) / r)
    grown = 1 + r * (1 - left)
    return base + np.log(grown), 1 - left * ratio / grown, (r * (1 - left) - (ratio - 1) * left) / grown


N, D = Term("A", (("N", "alpha"),)), Term("B", (("D", "beta"),))
TIED = (Term("A", (("N", "gamma"),)), Term("B", (("D", "gamma"),)))
# Another form is another class with these methods and a row here.
LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        PowerSum("Hoffmann", "ND", True, (N, D)),
        PowerSum("PowerN", "N", True, (N,)),
        PowerSum("PowerD", "D", True, (D,)),
        PowerSum("PurePowers", "ND", False, (N, D)),
        PowerSum("EqualPowers", "ND", False, TIED),
        PowerSum("PurePowerN", "N", False, (N,)),
        PowerSum("PurePowerD", "D", False, (D,)),
        # Gadre et al., arXiv 2403.08540: a N^-g + b 6^(-g/2) (M N)^-g + E, M = D/N, so that every M has one exponent of C
        PowerSum("OverTraining", "ND", True, TIED),
        PowerSum("Interaction", "ND", True, (N, D, Term("F", (("N", "gamma"), ("D", "delta"))))),
        Kaplan("Kaplan", "ND", False),
        Kaplan("KaplanFloor", "ND", True),
        Broken("BrokenN", "N", True),
        Broken("BrokenD", "D", True),
        DataConstrained("DataConstrained", "NDU", True),
    )
}


# joint forms that are compared; findings rest on the first alone
JOINT_FORMS = {
    "Hoffmann": "Hoffmann's",
    "OverTraining": "that with one exponent",
    "Kaplan": "Kaplan's",
    "KaplanFloor": "Kaplan's with a floor",
}
