"""More data or more steps: planted shares come back, from runs with as many steps alone."""

from __future__ import annotations

import math

import pytest

from gnnscale.scaling.comparisons import data_vs_steps
from gnnscale.scaling.grid import find_main_grid
from tests.gnnscale.scaling.test_analysis import grid, run


def studied(steps: float = 0.2, data: float = 0.3, extra=()) -> list:
    """Loss ~ (steps)^-steps (structures)^-data at 4 epochs on a grid, and at 1 and 16 at one width."""
    points = grid(law=lambda n, d: d ** -(steps + data), noise=0)
    for d in (250, 500, 1000, 2000):
        for epochs in (1.0, 16.0):
            loss = (d * epochs / 4) ** -steps * d**-data
            points.append(run(32, d, run=f"e{epochs:g}-{d}", epochs=epochs, loss=loss))
    return [*points, *extra]


def test_the_planted_share_comes_back():
    points = studied()
    found = data_vs_steps.find_tradeoffs(points, find_main_grid(points))
    assert {(x.base.structures, x.base.epochs) for x in found} == {(250, 1), (500, 1), (250, 4), (500, 4)}
    for x in found:
        assert (x.factor, x.by_data, x.by_epochs) == (4, pytest.approx(4**-0.5), pytest.approx(4**-0.2))
    (said,) = data_vs_steps.describe_tradeoffs(found, "loss")
    assert (
        "4 times the structures change it by −50 %" in said
        and "on the same structures by −24 %, at as many steps" in said
    )
    assert "means of 4 runs, width 32" in said
    assert "40 % of the apparent effect of more data" in said


def test_seeds_are_averaged_and_strangers_left_out():
    """A second seed 2 % above moves means by 1 %; another depth, rate or a prefix has no say."""
    points = studied()
    base = next(p for p in points if p.width == 32 and p.structures == 250 and p.epochs == 4)
    again = base.model_copy(update={"seed": 1, "loss": base.loss * 1.02, "run": "again"})
    changes = ({"depth": 9}, {"learning_rate": 1.0}, {"subset": "prefix"}, {"diverged": True})
    strangers = [base.model_copy(update={"run": "s", "epochs": 16.0, "loss": 1e-9, **change}) for change in changes]
    found = data_vs_steps.find_tradeoffs([*points, again, *strangers], find_main_grid(points))
    (x,) = [x for x in found if (x.base.structures, x.base.epochs) == (250, 4)]
    assert x.by_data == pytest.approx(4**-0.5 / math.sqrt(1.02)) and len(found) == 4
    assert x.by_epochs == pytest.approx(4**-0.2 / math.sqrt(1.02))


def test_data_that_bring_nothing_are_called_so():
    points = studied(steps=0.3, data=0.0)
    assert (
        "the data themselves have no visible effect"
        in data_vs_steps.describe_tradeoffs(data_vs_steps.find_tradeoffs(points, find_main_grid(points)), "loss")[0]
    )
    assert (
        data_vs_steps.find_tradeoffs(grid(), find_main_grid(grid())) == []
        and data_vs_steps.describe_tradeoffs([], "loss") == []
    )


def test_runs_that_do_not_say_how_long_they_were_are_traded_for_none():
    points = studied()
    untold = [p.model_copy(update={"epochs": 0.0, "run": f"{p.run}-0"}) for p in points if p.epochs == 1]
    assert data_vs_steps.find_tradeoffs([*points, *untold], find_main_grid(points)) == data_vs_steps.find_tradeoffs(
        points, find_main_grid(points)
    )
