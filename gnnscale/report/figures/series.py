"""The data of figures: numbers in the units of a figure, smoothed curves, frontiers, short labels."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from gnnscale.contract.scaling_results import LawFit, Point
from gnnscale.report.study_results import TARGETS
from gnnscale.scaling.fitting.identifiability import MAX_RESIDUAL
from gnnscale.scaling.fitting.laws import LAWS


def in_figure_unit(p: Point, target: str) -> float:
    return TARGETS[target][2] * getattr(p, target)


def predict_target(law: LawFit, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    form = LAWS[law.law]
    return form(np.array([[law.estimates[name].value for name in form.parameters]]), N=n, D=d)


def is_accurate(law: LawFit | None) -> bool:
    """Return whether the law describes the runs to within MAX_RESIDUAL."""
    return law is not None and law.log_rms <= MAX_RESIDUAL


def find_frontier(points: list[Point], cost: dict[str, float]) -> list[Point]:
    """Return the runs that no cheaper run beats; `cost` is by run."""
    best: list[Point] = []
    for p in sorted(points, key=lambda p: (cost[p.run], p.loss)):
        if not best or p.loss < best[-1].loss:
            best.append(p)
    return best


def smooth(x: np.ndarray, y: np.ndarray, width: float = 0.06, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Smooth the scatter of batches by geometric means under a Gaussian window of `width`, a share of the range."""
    good = np.isfinite(y) & (y > 0)
    x, y = x[good], y[good]
    if len(x) < 2:
        return x, y
    at = np.linspace(x[0], x[-1], count)
    weight = np.exp(-0.5 * ((at[:, None] - x) / (width * np.ptp(x))) ** 2)  # (count, lines)
    return at, np.exp(weight @ np.log(y) / weight.sum(axis=1))


def tabulate_grid(points: list[Point], target: str) -> tuple[list[int], list[int], np.ndarray]:
    """Return model sizes, data sizes, and the target of each pair, (sizes, models), NaN without a run."""
    models, sizes = (sorted({getattr(p, name) for p in points}) for name in ("body_parameters", "structures"))
    values = np.full((len(sizes), len(models)), np.nan)
    for p in points:
        values[sizes.index(p.structures), models.index(p.body_parameters)] = in_figure_unit(p, target)
    return models, sizes, values


def select_near_depths(points: list[Point]) -> tuple[int, list[Point]]:
    """Return the largest data size with several depths, and its runs near in size to those of the rarer depths."""
    depths = defaultdict(set)
    for p in points:
        depths[p.structures].add(p.depth)
    size = max((d for d, found in depths.items() if len(found) > 1), default=0)
    here = [p for p in points if p.structures == size]
    usual = Counter(p.depth for p in here).most_common(1)[0][0] if here else 0
    others = [p.body_parameters for p in here if p.depth != usual]
    return size, [p for p in here if min(others) / 5 <= p.body_parameters <= max(others) * 5]


def format_si(value: float, digits: int = 3) -> str:
    """Format a number for a tick: 1500 becomes 1.5k."""
    if value >= 1e10 or value < 1e-3:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"$10^{{{int(exponent)}}}$" if mantissa == "1" else f"${mantissa}{{\\cdot}}10^{{{int(exponent)}}}$"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{float(f'{value / size:.{digits}g}'):g}{letter}"
    return f"{float(f'{value:.{digits}g}'):g}"


def format_size(name: str, value: float) -> str:
    return f"D = {format_si(value)}" if name == "structures" else f"N = {format_si(value, 2)}"


def escape_dollars(name: str) -> str:
    """Escape the dollars of a name, which would start a formula."""
    return name.replace("$", r"\$")
