"""The selection of points for a law: the width x structures grid among them, and the rule that excluded each other run."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from gnnscale.contract.scaling_results import Point

SHARED_FIELDS = ("model", "depth", "epochs", "learning_rate", "seed")  # equal in all points of a grid
MIN_SHARE_OF_ROW = 0.5  # a width enters if it is at more than this share of the grid's data sizes, a data size likewise
WHERE_N, WHERE_D, WHERE_ALL = "the largest data size", "the largest model", "the whole grid"
WHERE_LENGTHS = "the grid with every number of epochs"
WHERE_MODEL = "the grid of "  # followed by the name of another model
MIN_SIZES_OF_MODEL = 3  # sizes of model and of data that another model needs for a law of its own
MIN_SIZES_OF_SET = 4  # sizes of model and data, together, that runs on one of several sets of sources need for a law
MIN_EPOCH_COUNTS = 3  # numbers of epochs from which the value of repeated data can be fitted


class Grid(NamedTuple):
    """A set of points that differ in N and D alone. Empty widths: no product was found, so every point belongs to it."""

    model: str
    depth: int
    epochs: float
    learning_rate: float
    seed: int
    widths: frozenset[int]
    sizes: frozenset[int]

    def exclusion_rule(self, p: Point, free: tuple[str, ...] = ("seed",)) -> str:
        """Return the rule that excludes a point from the grid, or "" if it belongs to it or differs in `free` alone."""
        if p.subset != "random":
            return "not a random subset of the structures"
        for name in SHARED_FIELDS:
            if name not in free and getattr(p, name) != getattr(self, name):
                return f"another {name.replace('_', ' ')}"
        if self.widths and p.width not in self.widths:
            return "outside the grid: its width is at too few of the grid's data sizes"
        if self.widths and p.structures not in self.sizes:
            return "outside the grid: its data size is at too few of the grid's widths"
        return ""


def find_main_grid(points: list[Point]) -> Grid:
    """Choose model, depth, epochs, rate and seed that most points share, one after the other; ties go to the smaller."""
    drawn = [p for p in points if p.subset == "random"] or points
    shared: dict[str, Any] = {}  # values of fields of several types
    rest = [p for p in drawn if not p.diverged] or drawn
    for name in SHARED_FIELDS:
        counts = Counter(getattr(p, name) for p in rest)
        shared[name] = min(counts, key=lambda value: (-counts[value], value))
        rest = [p for p in rest if getattr(p, name) == shared[name]]
    alike = [p for p in drawn if all(getattr(p, name) == value for name, value in shared.items())]
    widths, sizes = find_largest_product(alike)
    return Grid(**shared, widths=widths, sizes=sizes)


def select_one_set(points: list[Point]) -> list[Point]:
    """Return the runs on the sources that most runs have; none where several sets of sources have too few sizes each.

    An error on one source says nothing about a run on another, so that no law, figure or comparison has both.
    """
    by_sources = defaultdict(list)
    for p in points:
        by_sources[p.source_names].append(p)
    if len(by_sources) < 2:
        return points
    found = max(by_sources.values(), key=lambda of_set: (count_sizes(of_set), of_set[0].source_names))
    return found if count_sizes(found) >= MIN_SIZES_OF_SET else []


def count_sizes(points: list[Point]) -> int:
    return len({(p.model, p.body_parameters, p.structures) for p in points})


def find_largest_product(points: list[Point]) -> tuple[frozenset[int], frozenset[int]]:
    """Return the widths and data sizes of the largest grid among the points, diverged ones included.

    A width that is at one of the data sizes only, as in a sweep of depths, would tilt a law: its neighbours are missing.
    One failed run, though, must not cost its whole row, hence MIN_SHARE_OF_ROW. Where no grid holds half of the points the
    design is scattered, and nothing is left out.
    """
    at = defaultdict(set)
    for p in points:
        at[p.width].add(p.structures)
    best: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
    most = 0.5 * sum(map(len, at.values()))
    for sizes in sorted(map(frozenset, at.values()), key=lambda sizes: (-len(sizes), sorted(sizes))):
        widths = frozenset(w for w, found in at.items() if len(found & sizes) > MIN_SHARE_OF_ROW * len(sizes))
        sizes = frozenset(s for s in sizes if sum(s in at[w] for w in widths) > MIN_SHARE_OF_ROW * len(widths))
        count = sum(len(at[w] & sizes) for w in widths)
        if count > most:
            best, most = (widths, sizes), count
    return best


def select_usable(
    points: list[Point], target: str, grid: Grid, drop_highest: int = 0, free: tuple[str, ...] = ("seed",)
) -> tuple[list[Point], dict[str, str]]:
    """Return the points that a law may use, sorted by (N, D), and for each other run the rule that excluded it."""
    kept: list[Point] = []
    excluded: dict[str, str] = {}
    cells: dict[tuple, str] = {}
    values = sorted(
        (getattr(p, target) for p in points if is_sound(p, target) and not grid.exclusion_rule(p, free)), reverse=True
    )
    least_dropped = values[drop_highest - 1] if 0 < drop_highest <= len(values) else math.inf
    for p in points:
        value = getattr(p, target)
        cell = tuple(getattr(p, name) for name in (*SHARED_FIELDS, "width", "structures", "subset"))
        if p.diverged:
            rule = "diverged"
        elif not math.isfinite(value):
            rule = f"{target} is not finite"
        elif value <= 0:
            rule = f"{target} is not positive"
        elif cell in cells:
            rule = f"duplicate of {cells[cell]}"
        else:
            rule = grid.exclusion_rule(p, free)
        if not rule and value >= least_dropped:
            rule = f"one of the {drop_highest} of largest {target}"
        if not rule:
            kept.append(p)
            cells[cell] = p.run
            continue
        name, again = p.run, 2
        while name in excluded or any(name == k.run for k in kept):
            name, again = f"{p.run} (row {again})", again + 1
        excluded[name] = rule
    return sorted(kept, key=lambda p: sort_key(p, grid)), excluded


def sort_key(p: Point, grid: Grid) -> tuple:
    """Order points so that the seeds of one run are neighbours, the grid's own seed first."""
    return p.body_parameters, p.structures, p.epochs, p.seed != grid.seed, p.seed, p.run


def select_comparable(points: list[Point]) -> list[Point]:
    """Return the points that may be compared with each other: no run on a prefix of the files."""
    return [p for p in points if is_sound(p, "loss") and p.subset == "random"]


def is_sound(p: Point, target: str) -> bool:
    return not p.diverged and math.isfinite(getattr(p, target)) and getattr(p, target) > 0


def group_by_cell(points: list[Point] | tuple[Point, ...]) -> dict[tuple, list[Point]]:
    """Group the runs that differ in their seed alone, by (N, D, epochs)."""
    cells = defaultdict(list)
    for p in points:
        cells[p.body_parameters, p.structures, p.epochs].append(p)
    return dict(cells)


def average_seeds(points: list[Point] | tuple[Point, ...], target: str) -> list[Point]:
    """Return one point for each (N, D, epochs): the run of the first seed with the geometric mean over seeds."""
    return [
        runs[0].model_copy(update={target: math.exp(sum(math.log(getattr(p, target)) for p in runs) / len(runs))})
        for runs in group_by_cell(points).values()
    ]


def select_where(points: list[Point], where: str) -> list[Point]:
    """Return the points at the largest data size or of the largest model, or all of them."""
    if where == WHERE_N:
        most = max((p.structures for p in points), default=0)
        return [p for p in points if p.structures == most]
    if where == WHERE_D:
        most = max((p.body_parameters for p in points), default=0)
        return [p for p in points if p.body_parameters == most]
    return points
