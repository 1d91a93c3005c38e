"""Statistics that a few wrong values do not change: medians by group, spread, a fit of least absolute deviations."""

from __future__ import annotations

import numpy as np

STANDARD_DEVIATIONS_PER_MAD = 1.4826  # of a normal distribution: standard deviation / median absolute deviation


def compute_group_medians(values: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Return (groups,) the median of the values of each group; NaN for a group without values."""
    order = np.lexsort((values, group))
    counts = np.bincount(group, minlength=groups)
    ends = np.cumsum(counts)
    begin, found = ends - counts, np.full(groups, np.nan)
    has, ordered = counts > 0, values[order]
    middle = begin[has] + (counts[has] - 1) // 2, begin[has] + counts[has] // 2
    found[has] = (ordered[middle[0]] + ordered[middle[1]]) / 2
    return found


def estimate_spread(deviations: np.ndarray) -> float:
    """Estimate a standard deviation from the median, or from the 95 % quantile if the tails are heavier than normal.

    Distortions and relaxations have such tails. A twentieth of the values may be wrong without changing the estimate.
    """
    if not len(deviations):
        return 0.0
    size = np.abs(deviations)
    return max(
        STANDARD_DEVIATIONS_PER_MAD * float(np.median(size)), float(np.quantile(size, 0.95, method="lower")) / 1.96
    )


def fit_least_absolute(rows: np.ndarray, values: np.ndarray, weights: np.ndarray, rounds: int = 20) -> np.ndarray:
    """Return (columns,) near the minimum of sum w |rows x - values|, by reweighting; of least norm about the median."""
    middle = np.median(values)
    left, solution = values - middle, np.zeros(rows.shape[1])
    scale = max(estimate_spread(left), 1e-6)
    strength = weights.astype(np.float64)
    for _ in range(rounds):
        normal = rows.T @ (rows * strength[:, None])
        solution = np.linalg.pinv(normal, rcond=1e-9, hermitian=True) @ (rows.T @ (strength * left))
        strength = weights / np.maximum(np.abs(rows @ solution - left), 1e-3 * scale)
    return solution + middle  # rows are shares: they sum to one
