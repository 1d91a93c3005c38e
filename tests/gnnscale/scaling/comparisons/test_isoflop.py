"""Planted optima of equal compute, and how they grow, are found; so is how well."""

from __future__ import annotations

import numpy as np
import pytest

from gnnscale.scaling.comparisons.isoflop import find_minimum, fit_growth


def test_the_bottom_of_a_valley_is_found_between_its_points():
    sizes = np.geomspace(1e3, 1e5, 9)
    found = find_minimum(sizes, 2 * np.exp(0.05 * np.log(sizes / 7e3) ** 2))
    assert found.inside and found.size == pytest.approx(7e3, rel=0.03) and found.loss == pytest.approx(2, rel=1e-3)


def test_a_bottom_at_the_end_is_called_so():
    sizes = np.geomspace(1e3, 1e5, 9)
    assert not find_minimum(sizes, 1 / sizes).inside and not find_minimum(sizes[:2], np.ones(2)).inside


def test_of_several_runs_of_one_size_the_best_counts():
    sizes = np.repeat(np.geomspace(1e3, 1e5, 9), 2)
    losses = np.exp(0.05 * np.log(sizes / 7e3) ** 2) * np.tile([1.0, 1.5], 9)
    assert find_minimum(sizes, losses) == find_minimum(sizes[::2], losses[::2])


def test_growth_comes_back_and_its_interval_covers():
    compute, rng, inside = np.geomspace(1e15, 1e19, 8), np.random.default_rng(0), 0
    exact = fit_growth(compute, 0.3 * compute**0.5)
    assert exact.exponent.value == pytest.approx(0.5) and exact.coefficient == pytest.approx(0.3) and exact.r2 == 1
    for k in range(200):
        sizes = 0.3 * compute**0.5 * np.exp(0.2 * rng.normal(size=8))
        e = fit_growth(compute, sizes, np.full(8, 0.2), resamples=200, seed=k).exponent
        inside += e.low < 0.5 < e.high
    assert 0.9 <= inside / 200 <= 0.99


def test_weights_are_those_of_the_spread():
    """A budget known ten times worse hardly moves the line."""
    compute = np.geomspace(1e15, 1e19, 6)
    sizes = compute**0.5 * np.array([1, 1, 1, 1, 1, 3.0])
    plain = fit_growth(compute, sizes).exponent.value
    weighted = fit_growth(compute, sizes, np.array([0.1] * 5 + [1.0])).exponent.value
    assert abs(weighted - 0.5) < 0.1 * abs(plain - 0.5)
