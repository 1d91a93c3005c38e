"""Planted bottoms are found: of the loss over the learning rate, and over the size at equal compute."""

from __future__ import annotations

import math

import pytest

from gnnscale.scaling.comparisons import contrasts
from tests.gnnscale.scaling.test_analysis import run

NAMES = {"loss": "loss"}


def valley(model, flops, best, loss, sizes, **changes):
    """Make runs of equal compute whose log loss is a parabola of log N."""
    return [
        run(
            round(math.sqrt(n)),
            1000,
            run=f"{model}-{flops:g}-{n}",
            model=model,
            body_parameters=n,
            flops=flops * (1 + 0.01 * k),
            epochs=1.0 + k,
            loss=loss * math.exp(0.1 * math.log(n / best) ** 2),
            **changes,
        )
        for k, n in enumerate(sizes)
    ]


SIZES = [1000, 2000, 4000, 8000]


def test_the_best_size_of_each_budget_is_found_and_grows_as_planted():
    points = [p for k in range(3) for p in valley("a", 1e9 * 4**k, 1500 * 2**k, 0.5 / 2**k, [s * 2**k for s in SIZES])]
    found = contrasts.group_by_compute(points)
    assert [b.models["a"].at for b in found] == pytest.approx([1500, 3000, 6000], rel=1e-6)
    assert [b.models["a"].loss for b in found] == pytest.approx([0.5, 0.25, 0.125], rel=1e-6)
    (said,) = contrasts.describe_equal_compute(points, ("loss",), NAMES)
    assert "N ~ C^0.50" in said


def test_models_are_compared_at_their_own_best_size():
    points = valley("a", 1e9, 1500, 0.5, SIZES) + valley("b", 1e9, 5000, 0.4, SIZES)
    (said,) = contrasts.describe_equal_compute(points, ("loss",), NAMES)
    assert said == "At 1.0e+09 FLOPs b has the lowest loss; a is 25 % higher."


def test_runs_of_unequal_compute_are_no_budget():
    points = valley("a", 1e9, 1500, 0.5, SIZES[:2])
    assert contrasts.group_by_compute(points + valley("a", 2e9, 1500, 0.5, SIZES[2:])) == []


def test_a_bottom_at_the_end_of_the_line_is_not_called_found():
    points = valley("a", 1e9, 100, 0.5, SIZES)
    assert not contrasts.group_by_compute(points)[0].models["a"].inside


def rates(width, best):
    return [
        run(width, 1000, run=f"w{width}-{rate}", learning_rate=rate, loss=0.3 * math.exp(math.log(rate / best) ** 2))
        for rate in (1e-3, 2e-3, 4e-3, 8e-3)
    ]


def test_the_best_rate_of_each_width_is_found():
    (found,) = contrasts.find_best_rates(rates(64, 2.5e-3) + rates(256, 3e-3))
    assert {w: b.at for w, b in found.widths.items()} == pytest.approx({64: 2.5e-3, 256: 3e-3}, rel=1e-6)
    assert "the same within a factor of 1.20 from width 64 to 256" in contrasts.describe_rates(found)


def test_a_rate_that_moves_or_is_not_bracketed_is_said_so():
    (found,) = contrasts.find_best_rates(rates(64, 2e-3) + rates(256, 5e-3) + rates(512, 0.1))
    said = contrasts.describe_rates(found)
    assert "not the same: it moves by a factor of 2.50" in said
    assert "At width 512 the best of the rates tried is at their end." in said


def test_diverged_runs_are_left_out():
    points = rates(64, 2.5e-3)
    lost = run(64, 1000, run="lost", learning_rate=3e-3, loss=1e-9, diverged=True)
    assert contrasts.find_best_rates([*points, lost]) == contrasts.find_best_rates(points)


def test_seeds_of_a_budget_are_one_valley_and_tell_how_well_its_bottom_is_known():
    """Bottoms 10 % to both sides of the planted ones: the mean is found, and the interval is that of their spread."""
    points = [
        p
        for k in range(4)
        for s, shift in enumerate((1.1, 1 / 1.1))
        for p in valley("a", 1e9 * 4**k, 1500 * 2**k * shift, 0.5 / 2**k, [s_ * 2**k for s_ in SIZES], seed=s)
    ]
    found = contrasts.group_by_compute(points)
    assert [b.models["a"].at for b in found] == pytest.approx([1500 * 2**k for k in range(4)], rel=1e-6)
    assert [b.models["a"].spread for b in found] == pytest.approx([math.log(1.1) * 2**0.5] * 4, rel=1e-6)
    slope = contrasts.fit_growth_of_best_size([(b.flops, b.models["a"]) for b in found]).exponent
    x = [math.log(b.flops) for b in found]
    error = math.log(1.1) / math.sqrt(sum((v - sum(x) / 4) ** 2 for v in x))  # of a mean of two seeds
    assert slope.value == pytest.approx(0.5) and slope.high - slope.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    alone = contrasts.group_by_compute([p for p in points if p.seed == 0])
    assert all(b.models["a"].spread is None for b in alone)


def test_prefixes_are_in_no_comparison():
    points = rates(64, 2.5e-3)
    assert contrasts.find_best_rates(
        [*points, points[0].model_copy(update={"subset": "prefix", "loss": 1e-3})]
    ) == contrasts.find_best_rates(points)


def test_runs_whose_compute_is_not_known_are_at_no_equal_compute():
    assert contrasts.group_by_compute(valley("a", 0.0, 1500, 0.5, SIZES)) == []
