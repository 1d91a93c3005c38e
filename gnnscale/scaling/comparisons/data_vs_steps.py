"""A comparison of more data with more steps.

At a fixed number of epochs more data are also more steps. Where a study has runs of several numbers of epochs, each
effect is measured apart from the other, without a law.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from gnnscale.contract.scaling_results import Point
from gnnscale.scaling.grid import Grid, average_seeds
from gnnscale.scaling.words import TARGET_NAMES, format_percent

MAX_RATIO_DIFFERENCE = 0.02  # data sizes are in the ratio of epochs to within this share, as 15,900 is to 4,000


class DataStepsTradeoff(NamedTuple):
    """The effect of as many more steps from one run: once by as many more structures, once by as many more epochs."""

    base: Point
    factor: float
    by_data: float  # the target over that of the base
    by_epochs: float


def find_tradeoffs(points: list[Point], grid: Grid, target: str = "loss") -> list[DataStepsTradeoff]:
    """Find all trade-offs that runs of the grid's model allow, from neighbouring numbers of epochs."""
    good = [
        p
        for p in points
        if p.epochs and not p.diverged and 0 < getattr(p, target) < math.inf and not is_outside(p, grid)
    ]
    at = {(p.width, p.structures, p.epochs): p for p in average_seeds(good, target)}
    lengths = sorted({epochs for _, _, epochs in at})
    tradeoffs = []
    for (width, size, epochs), base in sorted(at.items()):
        longer = next((e for e in lengths if e > epochs and (width, size, e) in at), None)
        if longer is None:
            continue
        factor = longer / epochs
        more = [
            p
            for (w, d, e), p in at.items()
            if (w, e) == (width, epochs) and abs(d / (size * factor) - 1) < MAX_RATIO_DIFFERENCE
        ]
        if more:
            values = [getattr(p, target) / getattr(base, target) for p in (more[0], at[width, size, longer])]
            tradeoffs.append(DataStepsTradeoff(base, factor, *values))
    return tradeoffs


def is_outside(p: Point, grid: Grid) -> bool:
    return p.subset != "random" or (p.model, p.depth, p.learning_rate) != (grid.model, grid.depth, grid.learning_rate)


def describe_tradeoffs(tradeoffs: list[DataStepsTradeoff], target: str) -> list[str]:
    """Write one sentence for each factor."""
    sentences = []
    for factor in sorted({each.factor for each in tradeoffs}):
        alike = [each for each in tradeoffs if each.factor == factor]
        data, epochs = (
            math.exp(sum(map(math.log, ratios)) / len(alike)) - 1
            for ratios in ([each.by_data for each in alike], [each.by_epochs for each in alike])
        )
        share = math.log1p(epochs) / math.log1p(data) if data < 0 else math.nan
        widths = sorted({each.base.width for each in alike})
        text = (
            f"More data or more steps, {TARGET_NAMES[target]}: {factor:g} times the structures change it by "
            f"{format_percent(data, sign=True)}, {factor:g} times the epochs on the same structures by "
            f"{format_percent(epochs, sign=True)}, at as many steps (means of "
            f"{len(alike)} runs, width {', '.join(map(str, widths))})"
        )
        if 0 < share < 1:
            text += f": {format_percent(share)} of the apparent effect of more data is that of their steps alone"
        elif share >= 1:
            text += ": the data themselves have no visible effect"
        sentences.append(f"{text}.")
    return sentences
