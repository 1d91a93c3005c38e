"""A BFGS minimiser for many problems at once.

Each row of an array takes its own steps, so a thousand refits cost as much as ten.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def minimise(
    function: Callable,
    starts: np.ndarray,
    slope: float = 1e-10,
    gain: float = 1e-15,
    steps: int = 400,
    inverse: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return theta, value and inverse Hessian of every row.

    A row stops when its gradient is below `slope` or its relative gain below `gain`. function(theta, rows) -> (values,
    gradients) of these rows. `inverse` is a guess, which saves half of the steps.
    """
    theta = np.array(starts, float)
    every = np.arange(len(theta))
    value, gradient = function(theta, every)
    if inverse is None:
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
        length, new_value, new_gradient = search_along_line(
            function, active, theta[active], move, value[active], gradient[active]
        )
        s, dg = length[:, None] * move, new_gradient - gradient[active]
        inverse[active] = update_inverse(inverse[active], s, dg)
        gained = value[active] - new_value
        theta[active] += s
        value[active], gradient[active] = new_value, new_gradient
        active = active[gained > gain * np.abs(new_value)]
    return theta, value, inverse


def search_along_line(function, active, theta, move, value, gradient):
    """Backtrack by quadratic interpolation, each row on its own; length 0 where no decrease was found."""
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


def update_inverse(inverse: np.ndarray, s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Update the inverse Hessian (BFGS) where the curvature along the step is positive."""
    sy = np.einsum("bi,bi->b", s, y)
    ok = sy > 1e-12 * np.sqrt((s**2).sum(axis=1) * (y**2).sum(axis=1))
    rho = np.where(ok, 1 / np.where(ok, sy, 1), 0)[:, None, None]
    hy = np.einsum("bij,bj->bi", inverse, y)
    yhy = np.einsum("bi,bi->b", y, hy)[:, None, None]
    ss = s[:, :, None] * s[:, None, :]
    hys = hy[:, :, None] * s[:, None, :]
    return inverse + (1 + rho * yhy) * rho * ss - rho * (hys + hys.transpose(0, 2, 1))
