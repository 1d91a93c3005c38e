"""Width against depth: runs of nearly equal size, data and epochs, one wider, one deeper."""

from __future__ import annotations

import math
from itertools import combinations
from typing import NamedTuple

from gnnscale.scaling.words import NAMES, joined, percent
from gnnscale.specs import Point

CLOSE = 0.15  # body parameters of a pair differ by at most this share
PAPER_DEPTH = 3  # layers, past which arXiv 2504.08112 says that width is the better use of parameters


class Pair(NamedTuple):
    """Two runs of nearly equal size, one wider, one deeper."""

    wide: Point
    deep: Point

    def gain(self, target: str) -> float:
        """By which share the deep one is better (negative: worse)."""
        return 1 - getattr(self.deep, target) / getattr(self.wide, target)


def width_depth_pairs(points: list[Point]) -> list[Pair]:
    """For each deeper run at the same data, epochs and seed the shallower run nearest in size, per depth."""
    nearest: dict[tuple, Pair] = {}
    good = [p for p in points if not p.diverged and math.isfinite(p.loss) and p.loss > 0]
    for a, b in combinations(sorted(good, key=lambda p: (p.depth, p.body_parameters, p.run)), 2):
        same = all(getattr(a, x) == getattr(b, x) for x in ("model", "structures", "epochs", "learning_rate", "seed"))
        if a.depth < b.depth and a.width > b.width and same and apart(a, b) <= CLOSE:
            key = (b.run, a.depth)
            if key not in nearest or apart(a, b) < apart(*nearest[key]):
                nearest[key] = Pair(a, b)
    return sorted(
        nearest.values(), key=lambda x: (x.wide.depth, x.deep.depth, x.deep.structures, x.deep.width, x.deep.run)
    )


def apart(a: Point, b: Point) -> float:
    return abs(a.body_parameters / b.body_parameters - 1)


def claim_depth(pairs: list[Pair], targets: tuple[str, ...]) -> list[str]:
    """Width beats depth past three layers: the tally first, then every pair."""
    said, beyond = [], [x for x in pairs if x.wide.depth >= PAPER_DEPTH]
    if beyond:
        wide, count = sum(x.gain("loss") < 0 for x in beyond), len(beyond)
        verdict = "is not seen here" if not wide else "is seen here" if wide == count else "is seen here in part"
        tally = f"of {count} pairs of equal size the deeper network has the lower loss in {count - wide}"
        if count == 1:
            gain = beyond[0].gain("loss")
            tally = (
                f"in the one pair of equal size the deeper network has a {percent(abs(gain), 1)} "
                f"{'lower' if gain > 0 else 'higher'} loss"
            )
        said.append(f"That width beats depth past {PAPER_DEPTH} layers (same paper) {verdict}: {tally}.")
    for x in pairs:
        size = x.deep.body_parameters / x.wide.body_parameters - 1
        by = [f"{NAMES[t]} {percent(abs(x.gain(t)), 1)} {'lower' if x.gain(t) > 0 else 'higher'}" for t in targets]
        said.append(
            f"Depth {x.deep.depth}, width {x.deep.width} against depth {x.wide.depth}, width {x.wide.width} "
            f"({percent(size, 1, sign=True)} parameters, D = {x.deep.structures:,}): {joined(by)}."
        )
    return said


def depth_limits(pairs: list[Pair]) -> str:
    if not [x for x in pairs if x.wide.depth >= PAPER_DEPTH]:
        return (
            f"Width against depth: no two runs of different depth, the shallower of at least {PAPER_DEPTH} layers, are "
            f"within {percent(CLOSE)} in parameters at equal data."
        )
    if len({x.deep.seed for x in pairs}) > 1:
        return ""
    count = len({x.deep.run for x in pairs})
    return f"An interval for width against depth: {count} deeper {'network' if count == 1 else 'networks'}, one seed."
