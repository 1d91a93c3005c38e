"""What figures are drawn of: numbers in the units of a figure, smoothed curves, envelopes, short labels."""

from __future__ import annotations

import numpy as np

from gnnscale.report.study import TARGETS
from gnnscale.scaling.laws import LAWS
from gnnscale.specs import LawFit, Point


def scaled(p: Point, target: str) -> float:
    return TARGETS[target][2] * getattr(p, target)


def predicted(law: LawFit, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    form = LAWS[law.law]
    return form(np.array([[law.estimates[name].value for name in form.parameters]]), n, d)


def optimal_data(law: LawFit, n: np.ndarray) -> np.ndarray:
    """D that is best with N at equal N D: alpha A/N^alpha = beta B/D^beta."""
    a, alpha, b, beta = (law.estimates[name].value for name in ("A", "alpha", "B", "beta"))
    return np.exp((np.log(beta * b) - np.log(alpha * a) + alpha * np.log(n)) / beta)


def envelope(points: list[Point]) -> list[Point]:
    """Runs that no cheaper run beats."""
    best: list[Point] = []
    for p in sorted(points, key=lambda p: (p.flops, p.loss)):
        if not best or p.loss < best[-1].loss:
            best.append(p)
    return best


def smoothed(x: np.ndarray, y: np.ndarray, bins: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """Medians over equal stretches of log x: a noisy curve in as many points as a small panel can show."""
    good = np.isfinite(y) & (y > 0) & (x > 0)
    x, y = x[good], y[good]
    if not len(x):
        return x, y
    which = np.floor(bins * np.log(x / x[0]) / max(np.log(x[-1] / x[0]), 1e-9))
    parts = [which == k for k in np.unique(np.minimum(which, bins - 1))]
    parts[-1] |= which == bins
    return np.array([np.median(x[i]) for i in parts]), np.array([np.median(y[i]) for i in parts])


def si(value: float, digits: int = 3) -> str:
    """1500 -> 1.5k: short enough for a tick."""
    if value >= 1e10 or value < 1e-3:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"$10^{{{int(exponent)}}}$" if mantissa == "1" else f"${mantissa}{{\\cdot}}10^{{{int(exponent)}}}$"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{float(f'{value / size:.{digits}g}'):g}{letter}"
    return f"{float(f'{value:.{digits}g}'):g}"


def label(name: str, value: float) -> str:
    return f"D = {si(value)}" if name == "structures" else f"N = {si(value, 2)}"


def plain(name: str) -> str:
    """A name from a file is text: a dollar in it starts no formula."""
    return name.replace("$", r"\$")
