"""A comparison of random subsets of the data with prefixes of their files, all else equal: by how much a prefix misleads."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from gnnscale.contract.scaling_results import Point
from gnnscale.scaling.words import TARGET_NAMES, format_percent, join_names


class SubsetLine(NamedTuple):
    """The target of each seed by data size, of one model at one number of epochs, for random subsets and for prefixes."""

    model: str
    width: int
    depth: int
    epochs: float
    random: dict[int, list[float]]
    prefix: dict[int, list[float]]

    @property
    def shared(self) -> list[int]:
        return sorted(self.random.keys() & self.prefix.keys())

    def excess(self, size: int) -> float:
        """Return by which share a prefix is worse than a random subset; means over seeds are geometric."""
        return math.exp(float(np.log(self.prefix[size]).mean() - np.log(self.random[size]).mean())) - 1

    def exponent(self, subset: dict[int, list[float]]) -> float:
        """Return the exponent of the target's fall with D over the shared sizes, by least squares in logarithms."""
        sizes = self.shared
        return -float(np.polyfit(np.log(sizes), [np.log(subset[size]).mean() for size in sizes], 1)[0])

    def scatter(self) -> float:
        """Return the largest ratio of two seeds of one run, less 1."""
        cells = [cell for subset in (self.random, self.prefix) for cell in subset.values()]
        return max(max(cell) / min(cell) for cell in cells) - 1


def find_subset_lines(points: list[Point], target: str = "loss") -> list[SubsetLine]:
    """Find every model with both kinds of subsets at two data sizes or more."""
    by_model: dict[tuple, dict[str, dict[int, list[float]]]] = defaultdict(
        lambda: {"random": defaultdict(list), "prefix": defaultdict(list)}
    )
    for p in points:
        if not p.diverged and 0 < getattr(p, target) < math.inf:
            subsets = by_model[p.model, p.width, p.depth, p.epochs, p.learning_rate]
            subsets[p.subset][p.structures].append(getattr(p, target))
    lines = [
        SubsetLine(model, width, depth, epochs, dict(both["random"]), dict(both["prefix"]))
        for (model, width, depth, epochs, _), both in sorted(by_model.items())
    ]
    return [line for line in lines if len(line.shared) >= 2]


def describe_subset_bias(points: list[Point], targets: tuple[str, ...]) -> list[str]:
    sentences = []
    for target in targets:
        for line in find_subset_lines(points, target):
            each = join_names(f"{format_percent(line.excess(size), sign=True)} at D = {size:,}" for size in line.shared)
            seeds = max(len(cell) for cell in line.random.values())
            scatter = (
                f"seeds of one run differ by up to {format_percent(line.scatter())}"
                if seeds > 1
                else "one seed for each run"
            )
            sentences.append(
                f"Prefixes of the files in place of random subsets ({line.model}, width {line.width}): "
                f"{TARGET_NAMES[target]} {each}; {scatter}. As a power of D its exponent would come out as "
                f"{line.exponent(line.prefix):.2f} in place of {line.exponent(line.random):.2f}."
            )
    return sentences
