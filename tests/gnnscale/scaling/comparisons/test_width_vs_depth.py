"""Lines of depths: changes with Student's interval by hand, and verdicts that seeds must let through."""

from __future__ import annotations

import math

import pytest

from gnnscale.scaling.comparisons.width_vs_depth import describe_smoothing, find_depth_lines, judge_depth_claim
from tests.gnnscale.scaling.test_analysis import run


def line(by_depth: dict[int, float], scatter: float, **changes) -> list:
    """Two seeds, `scatter` to both sides in logarithms, at nearly equal size."""
    return [
        run(
            round(64 * (3 / d) ** 0.5),
            1000,
            d,
            loss * math.exp(s * scatter),
            run=f"d{d}{s}",
            seed=(s + 1) // 2,
            body_parameters=90_000 + d,
            **changes,
        )
        for d, loss in by_depth.items()
        for s in (-1, 1)
    ]


@pytest.mark.parametrize(
    ("deep", "scatter", "verdict", "word"),
    [
        (0.52, 0.002, "width", "is seen here for"),
        (0.48, 0.002, "depth", "is contradicted for"),
        (0.52, 0.05, "open", "is open for"),
        (0.48, 0.05, "open", "is open for"),
    ],
)
def test_a_verdict_needs_more_than_the_scatter_of_seeds(deep, scatter, verdict, word):
    points = line({2: 0.55, 3: 0.5, 6: deep}, scatter)
    (found,) = find_depth_lines(points)
    assert found.verdict == verdict and found.best("loss") == (6 if deep < 0.5 else 3)
    change = found.change_past_paper("loss")
    # three pairs of seeds: variance 2 s^2 each with one degree of freedom; Student's 97.5 % point of three is 3.1824
    reach = 3.1824 * math.sqrt(2 * scatter**2 * (1 / 2 + 1 / 2))
    assert change.value == pytest.approx(deep / 0.5 - 1)
    assert math.log1p(change.high) - math.log1p(change.low) == pytest.approx(2 * reach, rel=1e-4)
    assert word in judge_depth_claim(points, ("loss",))[0]


def test_lines_are_of_one_size_model_and_length():
    points = line({2: 0.55, 3: 0.5, 6: 0.5}, 0.01)
    other = [
        line({2: 0.1, 3: 0.1}, 0.01, **change) for change in ({"model": "b"}, {"epochs": 9.0}, {"subset": "prefix"})
    ]
    larger = [p.model_copy(update={"body_parameters": 200_000, "loss": 0.01}) for p in points]
    assert find_depth_lines([*points, *(p for more in other for p in more)]) == find_depth_lines(points)
    assert len(find_depth_lines([*points, *larger])) == 2
    assert find_depth_lines([p for p in points if p.depth > 2]) == []


@pytest.mark.parametrize(
    ("distance", "energy", "words"),
    [
        ((0.5, 0.1), (0.4, 0.01), "over-smoothing"),
        ((0.5, 0.4), (0.4, 0.01), "over-smoothing by one measure alone"),
        ((0.5, 0.4), (0.4, 0.3), "no over-smoothing"),
        ((None, None), (None, None), "not measured"),
    ],
)
def test_smoothing_is_a_fall_of_both_measures(distance, energy, words):
    points = line({2: 0.5, 3: 0.5, 6: 0.5}, 0.01)
    ends = {2: 0, 3: 0, 6: 1}
    points = [
        p.model_copy(update={"cosine_distance": distance[ends[p.depth]], "dirichlet_energy": energy[ends[p.depth]]})
        for p in points
    ]
    (found,) = find_depth_lines(points)
    assert describe_smoothing(found) == words


def test_depths_past_three_are_held_against_three_not_against_the_best():
    """A line that is best at two says nothing of what lies past three, if that is no worse than three."""
    (found,) = find_depth_lines(line({2: 0.4, 3: 0.5, 4: 0.5, 6: 0.52}, 0.002))
    assert (
        found.reference == 3 and found.change_past_paper("loss").value == pytest.approx(0) and found.verdict == "open"
    )
    (found,) = find_depth_lines(line({1: 0.4, 2: 0.5, 6: 0.6}, 0.002))
    assert found.reference == 2 and found.change_past_paper("loss").value == pytest.approx(0.2)
    assert "depth 6 is 20 % higher" in judge_depth_claim(line({1: 0.4, 2: 0.5, 6: 0.6}, 0.002), ("loss",))[1]
