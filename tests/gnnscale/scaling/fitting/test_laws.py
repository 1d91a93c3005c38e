"""Every law: planted parameters come back, gradients are those of finite differences, and its forms agree."""

from __future__ import annotations

import numpy as np
import pytest

from gnnscale.scaling.fitting.laws import LAWS
from gnnscale.scaling.fitting.optimum import HUBER, SQUARES, find_optimum, fit_resamples, make_objective

TRUE = {
    "Hoffmann": (0.1, 30.0, 0.4, 8.0, 0.5),
    "PowerN": (0.1, 30.0, 0.4),
    "PowerD": (0.1, 8.0, 0.5),
    "PurePowers": (30.0, 0.4, 8.0, 0.5),
    "EqualPowers": (30.0, 0.45, 8.0),
    "PurePowerN": (30.0, 0.4),
    "PurePowerD": (8.0, 0.5),
    "OverTraining": (0.1, 30.0, 0.45, 8.0),
    "Interaction": (0.1, 30.0, 0.5, 8.0, 0.6, 300.0, 0.2, 0.9),
    "Kaplan": (300.0, 0.5, 40.0, 0.35),
    "KaplanFloor": (0.1, 300.0, 0.5, 40.0, 0.35),
    "BrokenN": (0.1, 20.0, 0.3, 0.6, 3e4, 0.15),
    "BrokenD": (0.1, 20.0, 0.3, 0.6, 2e3, 0.15),
    "DataConstrained": (0.1, 30.0, 0.4, 8.0, 0.5, 6.0, 4.0),
}


def mesh(name: str) -> dict[str, np.ndarray]:
    """Return a grid that determines the law: N x D, along one axis, or N x U x epochs."""
    if name.startswith("Broken"):
        return {axis: np.geomspace(1e3, 1e6 if axis == "N" else 5e4, 24) for axis in LAWS[name].axes}
    if name == "DataConstrained":
        n, u, epochs = np.meshgrid([3e3, 1e4, 3e4, 1e5, 4e5], [200.0, 600.0, 2e3, 6e3], [1, 3, 10, 40])
        return {"N": n.ravel(), "D": (u * epochs).ravel(), "U": u.ravel()}
    count = 7 if name == "Interaction" else 4
    n, d = np.meshgrid(np.geomspace(5e3, 4e5, count), np.geomspace(250, 4e3, count))
    return {"N": n.ravel(), "D": d.ravel()}


def planted(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    at = mesh(name)
    return at, LAWS[name](np.array(TRUE[name]), **at)[0]


@pytest.mark.parametrize("name", LAWS)
def test_planted_parameters_come_back(name):
    found = find_optimum(LAWS[name], *planted(name))
    loose = name in ("Interaction", "DataConstrained")  # eight and seven parameters: a long valley
    np.testing.assert_allclose(found.values, TRUE[name], rtol=1e-3 if loose else 1e-6)
    assert found.log_rms < (1e-6 if loose else 1e-8)
    assert found.at_optimum == 1 or name in ("Interaction", "DataConstrained", "BrokenN", "BrokenD")


@pytest.mark.parametrize("name", [name for name in LAWS if name != "DataConstrained"])
def test_formula_and_call_agree(name):
    at, loss = planted(name)
    names = dict(zip(LAWS[name].parameters, TRUE[name])) | at
    expected = eval(LAWS[name].formula.removeprefix("L = ").replace("^", "**"), {}, names)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_what_is_fitted_is_what_is_called(name):
    """Compare log L of the free parameters, centred, with L of the natural ones: two ways to write every law."""
    law, (at, loss) = LAWS[name], planted(name)
    raw = law.columns(**at)
    centre = law.centre(raw)
    theta = law.starts(raw - centre, np.log(loss))[:5]
    np.testing.assert_allclose(
        np.exp(law.log_loss(theta, raw - centre)[0]), law(law.natural(theta, centre), **at), rtol=1e-9
    )


@pytest.mark.parametrize("residual", [HUBER, SQUARES], ids=["huber", "squares"])
@pytest.mark.parametrize("name", LAWS)
def test_gradients_are_those_of_finite_differences(name, residual):
    law, (at, loss), rng = LAWS[name], planted(name), np.random.default_rng(1)
    raw = law.columns(**at)
    y = np.log(loss) + 1e-3 * rng.normal(size=len(loss))  # both branches of Huber
    weights = rng.integers(0, 3, (1, len(y))).astype(float)
    function = make_objective(law, raw - law.centre(raw), y, weights, residual)
    theta = find_optimum(law, at, loss).theta + rng.normal(0, 3e-4, (5, len(law.parameters)))
    rows, step = np.zeros(5, int), 1e-7
    gradient = function(theta, rows)[1]
    scale = max(1.0, np.abs(gradient).max())
    for k in range(theta.shape[1]):
        up, down = theta.copy(), theta.copy()
        up[:, k] += step
        down[:, k] -= step
        difference = (function(up, rows)[0] - function(down, rows)[0]) / (2 * step)
        np.testing.assert_allclose(gradient[:, k], difference, rtol=2e-4, atol=1e-4 * scale)


def test_the_data_constrained_law_without_repetition_is_hoffmanns():
    """One epoch, and never more parameters than the data can use."""
    at = mesh("Hoffmann")
    values = np.array(TRUE["DataConstrained"])
    values[1] = 3000.0  # many parameters wanted
    once = LAWS["DataConstrained"](values, N=at["N"], D=at["D"], U=at["D"])
    np.testing.assert_allclose(once, LAWS["Hoffmann"](values[:5], **at), rtol=1e-12)


def test_over_training_costs_the_same_exponent_at_every_ratio():
    """Gadre et al.: along D = M N, whatever M, the reducible loss falls with one exponent of compute."""
    n = np.geomspace(1e4, 1e8, 5)
    slopes = []
    for ratio in (1, 20, 640):
        reducible = LAWS["OverTraining"](np.array(TRUE["OverTraining"]), N=n, D=ratio * n)[0] - 0.1
        slopes += [*(np.diff(np.log(reducible)) / np.diff(np.log(6 * ratio * n**2)))]
    np.testing.assert_allclose(slopes, -0.45 / 2, rtol=1e-9)


def test_resamples_are_what_separate_fits_give():
    """The batched, warm-started bootstrap against a fit from scratch on the repeated points."""
    law, (at, loss), rng = LAWS["Hoffmann"], planted("Hoffmann"), np.random.default_rng(2)
    y = loss * np.exp(0.005 * rng.normal(size=len(loss)))
    counts = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=12)
    values = fit_resamples(law, at, y, find_optimum(law, at, y), counts)
    for row, value in zip(counts, values):
        i = np.repeat(np.arange(len(y)), row)
        some = {axis: column[i] for axis, column in at.items()}
        again = find_optimum(law, some, y[i])
        np.testing.assert_allclose(value[[2, 4]], again.values[[2, 4]], rtol=0.02)
        mine, its = (np.abs(np.log(law(v, **some)[0] / y[i])).sum() for v in (value, again.values))
        np.testing.assert_allclose(mine, its, rtol=1e-3, atol=1e-5)


def test_a_weight_is_as_good_as_a_repetition():
    at, loss = planted("Hoffmann")
    loss = loss * np.exp(0.01 * np.random.default_rng(4).normal(size=len(loss)))
    i = np.repeat(np.arange(16), [3, *[1] * 15])
    twice = find_optimum(LAWS["Hoffmann"], {axis: c[i] for axis, c in at.items()}, loss[i])
    weighted = find_optimum(LAWS["Hoffmann"], at, loss, weights=np.array([3.0, *[1] * 15]))
    np.testing.assert_allclose(weighted.values, twice.values, rtol=1e-4)


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Plant 200 studies of 36 runs with 0.5 % noise, 100 resamples each.

    Of 95 % intervals at least 88 % must cover the truth: a pairs bootstrap of few points is somewhat too narrow.
    """
    law, rng, inside = LAWS["Hoffmann"], np.random.default_rng(3), []
    n, d = (c.ravel() for c in np.meshgrid(np.geomspace(5e3, 1e6, 6), np.geomspace(250, 8e3, 6)))
    exact = np.array(TRUE["Hoffmann"])

    def asked(values: np.ndarray) -> np.ndarray:
        """Return E, alpha, beta, and of the optimal allocation its exponent a and log N at N D = 2e8  # (5, rows)."""
        e, a, alpha, b, beta = values.T
        best = (np.log(alpha * a / (beta * b)) + beta * np.log(2e8)) / (alpha + beta)
        return np.stack([e, alpha, beta, beta / (alpha + beta), best])

    truth = asked(exact[None])[:, 0]
    for _ in range(200):
        y = law(np.array(TRUE["Hoffmann"]), N=n, D=d)[0] * np.exp(0.005 * rng.normal(size=36))
        found = find_optimum(law, {"N": n, "D": d}, y, exponents=np.array([[0.3, 0.3], [0.7, 0.7]]))
        values = fit_resamples(law, {"N": n, "D": d}, y, found, rng.multinomial(36, np.full(36, 1 / 36), size=100))
        low, high = np.quantile(asked(values), [0.025, 0.975], axis=1)
        inside.append((low < truth) & (high > truth))
    coverage = np.mean(inside, axis=0)
    assert ((coverage >= 0.88) & (coverage <= 0.99)).all(), coverage
