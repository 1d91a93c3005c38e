"""A comparison of width with depth, from runs of nearly equal size, data and epochs.

They are compared in pairs, one wider and one deeper, or along a line of depths, with the features of their atoms.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # quantiles of Student's t

from gnnscale.contract.scaling_results import Estimate, Point
from gnnscale.scaling.grid import select_comparable
from gnnscale.scaling.words import TARGET_NAMES, format_number, format_percent, join_names

MAX_SIZE_DIFFERENCE = 0.15  # body parameters of a pair differ by at most this share
PAPER_DEPTH = 3  # layers, past which width is the better use of parameters according to arXiv 2504.08112
MIN_DEPTHS_OF_LINE = 3  # that make a line
CONFIDENCE = 0.95


class WidthDepthPair(NamedTuple):
    """Two runs of nearly equal size, one wider, one deeper."""

    wide: Point
    deep: Point

    def gain(self, target: str) -> float:
        """Return by which share the deep one is better (negative: worse)."""
        return 1 - getattr(self.deep, target) / getattr(self.wide, target)


class DepthLine(NamedTuple):
    """Runs of one model, of nearly equal size and of different depths, each with one seed or several."""

    model: str
    structures: int
    epochs: float
    runs: dict[int, list[Point]]  # by depth, ascending

    @property
    def size(self) -> float:
        each = [p.body_parameters for runs in self.runs.values() for p in runs]
        return math.exp(sum(map(math.log, each)) / len(each))

    @property
    def name(self) -> str:
        return f"{self.model} of N ≈ {format_number(float(f'{self.size:.2g}'))}"

    @property
    def seeds(self) -> int:
        return min(len(runs) for runs in self.runs.values())

    def means(self, target: str) -> dict[int, float]:
        """Return the geometric mean over seeds, by depth."""
        return {
            d: math.exp(sum(math.log(getattr(p, target)) for p in runs) / len(runs)) for d, runs in self.runs.items()
        }

    def best(self, target: str, beyond: int = 0) -> int:
        """Return the depth of the least target among those beyond `beyond`."""
        means = self.means(target)
        return min((d for d in means if d > beyond), key=means.__getitem__)

    @property
    def reference(self) -> int:
        """The depth PAPER_DEPTH, or the nearest one below."""
        return max(d for d in self.runs if d <= PAPER_DEPTH)

    def change(self, target: str, deep: int, shallow: int) -> Estimate:
        """Return the relative change of the target from one depth to another.

        The interval is Student's, of the scatter between seeds, which is taken to be the same at all depths.
        """
        logs = {d: np.log([getattr(p, target) for p in runs]) for d, runs in self.runs.items()}
        spare = sum(len(y) - 1 for y in logs.values())
        change = float(logs[deep].mean() - logs[shallow].mean())
        if not spare:
            return Estimate(value=math.expm1(change))
        variance = sum(((y - y.mean()) ** 2).sum() for y in logs.values()) / spare
        reach = stdtrit(spare, (1 + CONFIDENCE) / 2) * math.sqrt(
            variance * (1 / len(logs[deep]) + 1 / len(logs[shallow]))
        )
        return Estimate(value=math.expm1(change), low=math.expm1(change - reach), high=math.expm1(change + reach))

    def change_past_paper(self, target: str) -> Estimate | None:
        """Return the change from PAPER_DEPTH to the best depth beyond; None where the line is on one side."""
        if min(self.runs) > PAPER_DEPTH or max(self.runs) <= PAPER_DEPTH:
            return None
        return self.change(target, self.best(target, PAPER_DEPTH), self.reference)

    @property
    def verdict(self) -> str:
        """The better use of parameters past PAPER_DEPTH, by the loss: "depth", "width", or "open"."""
        change = self.change_past_paper("loss")
        if change is None or not change.has_interval:
            return "open"
        low, high = change.interval
        return "width" if low > 0 else "depth" if high < 0 else "open"

    def last_layer_means(self, field: str) -> dict[int, float]:
        """Return the mean over seeds of a feature after the last layer, for the depths where it is known."""
        known = {d: [v for p in runs if (v := getattr(p, field)) is not None] for d, runs in self.runs.items()}
        return {d: sum(values) / len(values) for d, values in known.items() if values}


def find_pairs(points: list[Point]) -> list[WidthDepthPair]:
    """Find for each deeper run at the same data, epochs and seed the shallower run nearest in size, per depth."""
    nearest: dict[tuple, WidthDepthPair] = {}
    for a, b in combinations(sorted(select_comparable(points), key=lambda p: (p.depth, p.body_parameters, p.run)), 2):
        same = all(getattr(a, x) == getattr(b, x) for x in ("model", "structures", "epochs", "learning_rate", "seed"))
        if a.depth < b.depth and a.width > b.width and same and size_difference(a, b) <= MAX_SIZE_DIFFERENCE:
            key = (b.run, a.depth)
            if key not in nearest or size_difference(a, b) < size_difference(*nearest[key]):
                nearest[key] = WidthDepthPair(a, b)
    return sorted(
        nearest.values(), key=lambda x: (x.wide.depth, x.deep.depth, x.deep.structures, x.deep.width, x.deep.run)
    )


def find_depth_lines(points: list[Point]) -> list[DepthLine]:
    """Find all lines of MIN_DEPTHS_OF_LINE depths or more, by model and size."""
    alike = defaultdict(list)
    for p in sorted(select_comparable(points), key=lambda p: (p.body_parameters, p.depth, p.seed, p.run)):
        alike[p.model, p.structures, p.epochs, p.learning_rate].append(p)
    lines = []
    for (model, structures, epochs, _), members in sorted(alike.items()):
        groups: list[list[Point]] = []
        for p in members:
            if groups and p.body_parameters <= groups[-1][0].body_parameters * (1 + MAX_SIZE_DIFFERENCE):
                groups[-1].append(p)
            else:
                groups.append([p])
        for group in groups:
            runs = {d: [p for p in group if p.depth == d] for d in sorted({p.depth for p in group})}
            if len(runs) >= MIN_DEPTHS_OF_LINE:
                lines.append(DepthLine(model, structures, epochs, runs))
    return lines


def size_difference(a: Point, b: Point) -> float:
    return abs(a.body_parameters / b.body_parameters - 1)


# ---------------------------------------------------------------------------------------------------------- sentences
def judge_depth_claim(points: list[Point], targets: tuple[str, ...]) -> list[str]:
    """Judge the claim that width beats depth past three layers.

    The verdict comes first, then every line of depths by the first target, or else every pair.
    """
    lines = find_depth_lines(points)
    return judge_by_lines(lines, targets) if lines else judge_by_pairs(find_pairs(points), targets)


def judge_by_lines(lines: list[DepthLine], targets: tuple[str, ...]) -> list[str]:
    judged = [line for line in lines if line.change_past_paper("loss")]
    kinds = {kind: [line for line in judged if line.verdict == kind] for kind in ("width", "depth", "open")}
    words = {"width": "is seen here for", "depth": "is contradicted for", "open": "is open for"}
    parts = [
        f"{words[kind]} {join_names(dict.fromkeys(line.name for line in of_kind))}"
        for kind, of_kind in kinds.items()
        if of_kind
    ]
    claim = f"That width beats depth past {PAPER_DEPTH} layers (arXiv 2504.08112) {', '.join(parts)}."
    features = [sentence for line in lines if (sentence := describe_features(line))]
    return [claim] * bool(parts) + [describe_depth_line(line, targets[0]) for line in lines] + features


def describe_depth_line(line: DepthLine, target: str) -> str:
    each = ", ".join(f"{value:.3g} at {depth}" for depth, value in line.means(target).items())
    text = f"{line.name}, D = {line.structures:,}: {TARGET_NAMES[target]} by depth {each}; best at depth {line.best(target)}"
    change = line.change_past_paper(target)
    if change is None:
        return f"{text}."
    return f"{text}; depth {line.best(target, PAPER_DEPTH)} is {format_change(change)} against depth {line.reference}."


def format_change(change: Estimate) -> str:
    """Format a change like "4.2 % lower [1.0, 7.3]": the interval has the sign of the word."""
    sign, word = (-1, "lower") if change.value < 0 else (1, "higher")
    text = f"{format_percent(abs(change.value))} {word}"
    if not change.has_interval:
        return f"{text} (one seed: no interval)"
    ends = sorted(100 * sign * end for end in change.interval)
    return f"{text} [{ends[0]:.1f}, {ends[1]:.1f}]".replace("-", "−")


def describe_features(line: DepthLine) -> str:
    """Describe how unlike the atoms of a structure are after the last layer, from the shallowest to the deepest network."""
    distance, energy = line.last_layer_means("cosine_distance"), line.last_layer_means("dirichlet_energy")
    if len(distance) < 2 or distance.keys() != energy.keys():
        return ""
    first, last = min(distance), max(distance)
    near, far = format_number(distance[first]), format_number(distance[last])
    low, high = format_number(energy[first]), format_number(energy[last])
    return (
        f"{line.name}: after the last layer atoms of a structure are at a mean cosine distance of {near} at depth {first} and "
        f"{far} at depth {last}, with Dirichlet energies {low} and {high}: {describe_smoothing(line)}."
    )


def describe_smoothing(line: DepthLine) -> str:
    """Compare both measures of the shallowest and the deepest network; less than a factor of two is not called a trend."""
    falls = []
    for field in ("cosine_distance", "dirichlet_energy"):
        known = line.last_layer_means(field)
        if len(known) < 2:
            return "not measured"
        shallow, deep = known[min(known)], known[max(known)]
        falls.append(deep < shallow / 2)
    if all(falls):
        return "over-smoothing"
    return "over-smoothing by one measure alone" if any(falls) else "no over-smoothing"


def judge_by_pairs(pairs: list[WidthDepthPair], targets: tuple[str, ...]) -> list[str]:
    sentences, beyond = [], [pair for pair in pairs if pair.wide.depth >= PAPER_DEPTH]
    if beyond:
        wide, count = sum(pair.gain("loss") < 0 for pair in beyond), len(beyond)
        verdict = "is not seen here" if not wide else "is seen here" if wide == count else "is seen here in part"
        tally = f"of {count} pairs of equal size the deeper network has the lower loss in {count - wide}"
        if count == 1:
            gain = beyond[0].gain("loss")
            tally = (
                f"in the one pair of equal size the deeper network has a {format_percent(abs(gain), 1)} "
                f"{'lower' if gain > 0 else 'higher'} loss"
            )
        sentences.append(f"That width beats depth past {PAPER_DEPTH} layers (same paper) {verdict}: {tally}.")
    return sentences + [describe_pair(pair, targets) for pair in pairs]


def describe_pair(pair: WidthDepthPair, targets: tuple[str, ...]) -> str:
    wide, deep = pair.wide, pair.deep
    gains = {target: pair.gain(target) for target in targets}
    parts = [
        f"{TARGET_NAMES[target]} {format_percent(abs(gain), 1)} {'lower' if gain > 0 else 'higher'}"
        for target, gain in gains.items()
    ]
    more = format_percent(deep.body_parameters / wide.body_parameters - 1, 1, sign=True)
    return (
        f"Depth {deep.depth}, width {deep.width} against depth {wide.depth}, width {wide.width} "
        f"({more} parameters, D = {deep.structures:,}): {join_names(parts)}."
    )


def describe_depth_limits(points: list[Point]) -> str:
    """Describe what is not known of width against depth; empty where seeds give intervals."""
    lines, pairs = find_depth_lines(points), find_pairs(points)
    if lines:
        if min(line.seeds for line in lines) > 1:
            return ""
        return "An interval for width against depth: some depths were run with one seed."
    if not [pair for pair in pairs if pair.wide.depth >= PAPER_DEPTH]:
        return (
            f"Width against depth: no two runs of different depth, the shallower of at least {PAPER_DEPTH} layers, are "
            f"within {format_percent(MAX_SIZE_DIFFERENCE)} in parameters at equal data."
        )
    if len({pair.deep.seed for pair in pairs}) > 1:
        return ""
    count = len({pair.deep.run for pair in pairs})
    return f"An interval for width against depth: {count} deeper {'network' if count == 1 else 'networks'}, one seed."
