"""Prefixes against random subsets: the planted excess comes back, and laws are fitted to random ones alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gnnscale.scaling.analysis import fit_study
from gnnscale.scaling.comparisons import random_vs_prefix
from tests.gnnscale.scaling.test_analysis import QUICK, SIZES, WIDTHS, grid, law_of, run


def both(width: int = 64) -> list:
    """Prefixes are 40 % worse at 250 structures, and by a factor that falls to 1 at 2,000; seeds are 1 % to both sides."""
    points = []
    for d in SIZES:
        for seed, shift in ((0, 1.01), (1, 1 / 1.01)):
            loss = 8 / d**0.5 * shift
            worse = 1.4 ** (1 - math.log(d / 250) / math.log(8))
            points.append(run(width, d, run=f"r{d}{seed}", seed=seed, loss=loss))
            points.append(run(width, d, run=f"p{d}{seed}", seed=seed, loss=loss * worse, subset="prefix"))
    return points


def test_the_planted_excess_and_both_exponents_come_back():
    (line,) = random_vs_prefix.find_subset_lines(both())
    assert line.shared == list(SIZES)
    assert [line.excess(d) for d in SIZES] == pytest.approx([1.4 ** (1 - k / 3) - 1 for k in range(4)])
    assert line.exponent(line.random) == pytest.approx(0.5)
    assert line.exponent(line.prefix) == pytest.approx(0.5 + math.log(1.4) / math.log(8))
    assert line.scatter() == pytest.approx(1.01**2 - 1)
    (said,) = random_vs_prefix.describe_subset_bias(both(), ("loss",))
    assert "+40 % at D = 250" in said and "seeds of one run differ by up to 2.0 %" in said
    assert "would come out as 0.66 in place of 0.50" in said


def test_it_takes_both_kinds_at_two_sizes():
    assert random_vs_prefix.find_subset_lines([p for p in both() if p.subset == "random"]) == []
    assert random_vs_prefix.find_subset_lines([p for p in both() if p.subset == "random" or p.structures == 250]) == []


def test_laws_are_of_random_subsets():
    """More prefixes than random subsets change nothing; each is named as what it is."""
    points = grid()
    prefixes = [
        run(w, d, run=f"p{w}-{d}-{s}", seed=s, loss=3.0, subset="prefix") for w in WIDTHS for d in SIZES for s in (0, 1)
    ]
    found = fit_study([*points, *prefixes], QUICK)
    assert law_of(found).estimates == law_of(fit_study(points, QUICK)).estimates
    assert (
        set(law_of(found).excluded.values()) == {"not a random subset of the structures"}
        and len(law_of(found).excluded) == 32
    )
    assert np.isfinite([law.objective for law in found.laws]).all()
    assert found.findings[0].startswith("Prefixes of the files in place of random subsets")
