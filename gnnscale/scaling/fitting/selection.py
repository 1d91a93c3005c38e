"""The comparison of several laws: by information criteria, and by how each predicts the largest points from the others."""

from __future__ import annotations

import math

import numpy as np

from gnnscale.contract.scaling_results import HeldOut
from gnnscale.scaling.fitting.laws import Law
from gnnscale.scaling.fitting.optimum import Sizes, find_optimum

HELD_OUT_QUANTILE = 0.875  # of a scatter of points the largest are those above this quantile of N D


def information_criteria(objective: float, n: int, parameters: int) -> tuple[float | None, float | None]:
    """Return AICc and BIC of Laplace residuals of log L, or None without points to spare.

    Huber's loss is delta |residual| beyond delta. Only laws on the same points can be compared.
    """
    k = parameters + 1  # and the width of the residuals
    if n <= k + 1:
        return None, None
    fits = 2 * n * math.log(max(objective, 1e-15))
    return fits + 2 * k + 2 * k * (k + 1) / (n - k - 1), fits + k * math.log(n)


def predict_held_out(law: Law, at: Sizes, loss: np.ndarray, weights: np.ndarray) -> HeldOut | None:
    """Predict the largest points from a fit without them; None where too few are left."""
    far = is_largest(law, at)
    near = {axis: column[~far] for axis, column in at.items()}
    if not far.any() or len(np.unique(law.columns(**near), axis=0)) <= len(law.parameters):
        return None
    values = find_optimum(law, near, loss[~far], weights=weights[~far]).values
    error = np.abs(law(values, **{axis: column[far] for axis, column in at.items()})[0] / loss[far] - 1)
    product = np.prod([at[axis] for axis in law.axes if axis != "U"], axis=0)
    return HeldOut(
        points=int(far.sum()),
        beyond=float(f"{product[far].max() / product[~far].max():.6g}"),
        mean=float(f"{np.average(error, weights=weights[far]):.6g}"),
        worst=float(f"{error.max():.6g}"),
    )


def is_largest(law: Law, at: Sizes) -> np.ndarray:
    """Mark the largest points  # (points,).

    Of a grid these are the largest model and the largest data; of a scatter the points of largest N D.
    """
    sizes = [at[axis] for axis in law.axes if axis != "U"]
    if math.prod(len(np.unique(s)) for s in sizes) <= 2 * len(sizes[0]):
        return np.any([s == s.max() for s in sizes], axis=0)
    product = np.prod(sizes, axis=0)
    return product >= np.quantile(product, HELD_OUT_QUANTILE)
