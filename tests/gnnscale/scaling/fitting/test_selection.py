"""Criteria by hand, and a foretelling that has not seen what it foretells."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gnnscale.scaling.fitting.laws import LAWS
from gnnscale.scaling.fitting.selection import information_criteria, is_largest, predict_held_out

TRUE = np.array([0.1, 30.0, 0.4, 8.0, 0.5])


def mesh():
    n, d = (c.ravel() for c in np.meshgrid(np.geomspace(5e3, 4e5, 4), np.geomspace(250, 2e3, 4)))
    return {"N": n, "D": d}


def test_criteria_by_hand():
    """100 points, sum of Huber losses 2e-4, two parameters and the width of the residuals."""
    likelihood = 200 * math.log(2e-4)
    assert information_criteria(2e-4, 100, 2) == pytest.approx(
        (likelihood + 6 + 24 / 96, likelihood + 3 * math.log(100))
    )
    assert information_criteria(2e-4, 4, 2) == (None, None)


def test_the_largest_points_are_foretold_without_having_been_seen():
    """Doubled after the law was planted, they are missed by exactly a half."""
    at, law = mesh(), LAWS["Hoffmann"]
    loss, far = law(TRUE, **at)[0], is_largest(law, at)
    found = predict_held_out(law, at, np.where(far, 2 * loss, loss), np.ones(16))
    assert found.points == far.sum() == 7 and found.beyond == pytest.approx(
        (at["N"] * at["D"])[far].max() / (at["N"] * at["D"])[~far].max(), rel=1e-5
    )
    assert found.mean == found.worst == pytest.approx(0.5, abs=1e-6)


def test_of_a_scatter_those_of_largest_product_are_held_out():
    rng = np.random.default_rng(0)
    at = {"N": np.exp(rng.uniform(8, 14, 80)), "D": np.exp(rng.uniform(5, 9, 80))}
    far, product = is_largest(LAWS["Hoffmann"], at), at["N"] * at["D"]
    assert far.sum() == 10 and product[far].min() > product[~far].max()


def test_too_few_points_are_foretold_by_none():
    at = {axis: sizes[[0, 1, 4, 5, 10, 15]] for axis, sizes in mesh().items()}
    assert predict_held_out(LAWS["Hoffmann"], at, LAWS["Hoffmann"](TRUE, **at)[0], np.ones(6)) is None
