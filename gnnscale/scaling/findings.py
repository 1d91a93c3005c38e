"""What the fits say and what they do not, in sentences whose every number and verdict is computed.

The claims that are looked at are those of arXiv 2504.08112: data scaling beats model scaling, and width beats depth
past three layers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gnnscale.scaling.laws import optimum
from gnnscale.specs import Estimate, Point, ScalingSettings

if TYPE_CHECKING:
    from gnnscale.scaling.fit import Fitted, Grid

NAMES = {"loss": "Loss", "energy_mae": "Energy error", "force_mae": "Force error"}
CLOSE = 0.15  # body parameters of a width-against-depth pair differ by at most this share
PAPER_DEPTH = 3  # layers, past which the paper says that width is the better use of parameters


class Doubling(NamedTuple):
    """At one point of the grid: the share of the target that a doubling of N, of D takes away."""

    place: str
    point: Point
    measured: dict[str, float | None]  # between neighbours in the grid; None without a neighbour
    law: dict[str, float] | None  # of the joint law, at the point
    difference: tuple[float, float] | None  # interval of D's share minus N's, by the joint law

    @property
    def verdict(self) -> str:
        if self.difference is None:
            return "open"
        low, high = self.difference
        return "data" if low > 0 else "model" if high < 0 else "open"


class Pair(NamedTuple):
    """Two runs of nearly equal size, one wider, one deeper."""

    wide: Point
    deep: Point

    def gain(self, target: str) -> float:
        """By which share the deep one is better (negative: worse)."""
        return 1 - getattr(self.deep, target) / getattr(self.wide, target)


def sentences(
    points: list[Point], grid: Grid, fitted: list[Fitted], settings: ScalingSettings
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(findings, what is not supported)"""
    joint = [f for f in fitted if f.entry.law == "Hoffmann"]
    if not joint:
        return ("No run is usable, so there is no law.",), ("Everything: there are no usable points.",)
    doublings = {f.entry.target: doubling(f, settings) for f in joint}
    pairs = width_depth_pairs(points)
    said = [claim_data(doublings)]
    unsaid = [extrapolation(joint)]
    claim_depth(pairs, said, unsaid)
    said.append(basis(points, grid, joint[0]))
    for f in joint:
        (said if f.entry.identified else unsaid).append(exponents(f, settings))
        said.append(doubling_sentence(f.entry.target, doublings[f.entry.target], settings))
        allocation(f, settings, said, unsaid)
    unsaid += confounded(grid, joint[0].points)
    unsaid += open_laws([f for f in fitted if len(f.law.axes) == 1 and f.law.floor and not f.entry.identified])
    said += [depth_sentence(x, settings.targets) for x in pairs]
    noise(points, settings.targets, said, unsaid)
    return tuple(said), tuple(unsaid)


# ------------------------------------------------------------------------------------------------- data against model
def basis(points: list[Point], grid: Grid, joint: Fitted) -> str:
    n, d = sorted({p.body_parameters for p in joint.points}), sorted({p.structures for p in joint.points})
    diverged = sorted(p.run for p in points if p.diverged)
    text = (
        f"The laws rest on {len(joint.points)} of {len(points)} runs: {len(n)} model sizes (N = {n[0]:,} to {n[-1]:,} "
        f"body parameters, a factor {n[-1] / n[0]:.3g}) and {len(d)} data sizes (D = {d[0]:,} to {d[-1]:,} unique "
        f"training structures, a factor {d[-1] / d[0]:.3g}); {grid.model}, depth {grid.depth}, {grid.epochs:g} epochs, "
        f"seed {grid.seed}."
    )
    if diverged:
        text += (
            f" {len(diverged)} diverged and {'is' if len(diverged) == 1 else 'are'} in no law: {', '.join(diverged)}."
        )
    return text


def doubling(f: Fitted, settings: ScalingSettings) -> list[Doubling]:
    """At the point nearest the middle of the grid, and at its largest corner."""
    n = np.log([p.body_parameters for p in f.points])
    d = np.log([p.structures for p in f.points])
    middle = int(np.argmin(np.round((n - (n.min() + n.max()) / 2) ** 2 + (d - (d.min() + d.max()) / 2) ** 2, 9)))
    corner = int(np.argmax(np.round((n - n.min()) / (np.ptp(n) or 1) + (d - d.min()) / (np.ptp(d) or 1), 9)))
    found = []
    for place, point in (("centre", f.points[middle]), ("largest corner", f.points[corner])):
        measured = {axis: measured_share(f.points, f.entry.target, point, axis) for axis in "ND"}
        law = difference = None
        if f.replicas is not None:
            shares = law_shares(f.values[None, :], point)
            law = {axis: float(share[0]) for axis, share in shares.items()}
            sample = law_shares(f.replicas, point)
            tail = (1 - settings.confidence) / 2
            difference = tuple(float(v) for v in np.quantile(sample["D"] - sample["N"], [tail, 1 - tail]))
        found.append(Doubling(place, point, measured, law, difference))
    return found


def measured_share(points: tuple[Point, ...], target: str, at: Point, axis: str) -> float | None:
    """1 - 2^slope, with the slope of log target between the neighbours of a point along one axis of the grid."""
    along, across = ("body_parameters", "structures") if axis == "N" else ("structures", "body_parameters")
    line = sorted((p for p in points if getattr(p, across) == getattr(at, across)), key=lambda p: getattr(p, along))
    i = line.index(at)
    low, high = line[max(i - 1, 0)], line[min(i + 1, len(line) - 1)]
    if low is high:
        return None
    rise = math.log(getattr(high, target) / getattr(low, target))
    return 1 - 2 ** (rise / math.log(getattr(high, along) / getattr(low, along)))


def law_shares(values: np.ndarray, at: Point) -> dict[str, np.ndarray]:
    """The same by the joint law, from its slope at the point: nothing beyond the point is used."""
    e, a, alpha, b, beta = values.T
    tiny = 1e-300  # terms of no meaning, as where the points determine nothing, stay finite
    model = np.exp(np.clip(np.log(a + tiny) - alpha * math.log(at.body_parameters), -300, 300))
    data = np.exp(np.clip(np.log(b + tiny) - beta * math.log(at.structures), -300, 300))
    total = e + model + data
    return {"N": 1 - 2 ** (-alpha * model / total), "D": 1 - 2 ** (-beta * data / total)}


def doubling_sentence(target: str, doublings: list[Doubling], settings: ScalingSettings) -> str:
    parts = []
    for x in doublings:
        shares = ", ".join(
            f"{axis} has no neighbour to measure by"
            if share is None
            else f"a doubling of {axis} {'lowers' if share >= 0 else 'raises'} it by {abs(share):.1%}"
            for axis, share in x.measured.items()
        )
        text = f"at the {x.place} (N = {x.point.body_parameters:,}, D = {x.point.structures:,}) {shares}"
        if x.law and x.difference:
            low, high = (100 * v for v in x.difference)
            text += (
                f" (joint law: {x.law['N']:.1%}, {x.law['D']:.1%}; D helps more by {low:+.1f} to {high:+.1f} "
                f"percentage points, {settings.confidence:.0%} interval)"
            )
        parts.append(text)
    return f"{NAMES[target]}, measured between neighbouring runs: {'; '.join(parts)}."


def claim_data(doublings: dict[str, list[Doubling]]) -> str:
    """Data scaling beats model scaling: the verdict over targets and places, each decided by its own interval."""
    places = {"data": [], "model": [], "open": []}
    for target, found in doublings.items():
        for x in found:
            places[x.verdict].append(f"{NAMES[target].lower()} at the {x.place}")
    total = sum(map(len, places.values()))
    if len(places["data"]) == total:
        verdict = "is supported within this grid"
    elif len(places["model"]) == total:
        verdict = "is contradicted within this grid: model size helps more"
    elif places["open"] and len(places["open"]) == total:
        verdict = "is neither supported nor contradicted by this grid"
    else:
        verdict = "is supported in part"
        if places["model"] and not places["data"]:
            verdict = "is contradicted in part"
    text = f"That data scaling beats model scaling (arXiv 2504.08112) {verdict}, comparing a doubling of each."
    for kind, words in (
        ("data", "Data helps more for"),
        ("model", "Model size helps more for"),
        ("open", "Not distinguished:"),
    ):
        if places[kind] and len(places[kind]) < total:
            text += f" {words} {', '.join(places[kind])}."
    target, (centre, *_) = next(iter(doublings.items()))
    if None not in centre.measured.values():
        change = " and ".join(f"{-centre.measured[axis]:+.1%} for a doubling of {axis}" for axis in "DN")
        text += f" {NAMES[target]} at the centre: {change}."
    return text


def exponents(f: Fitted, settings: ScalingSettings) -> str:
    name, e = NAMES[f.entry.target], f.entry.estimates
    values = f"α = {shown(e['alpha'])} for model size, β = {shown(e['beta'])} for data"
    if not f.entry.identified:
        why = "; ".join(f.entry.notes)
        return f"{name}, E + A/N^α + B/D^β: the parameters are not determined ({why}). Fitted: {values}."
    alpha, beta = (f.replicas[:, f.law.parameters.index(p)] for p in ("alpha", "beta"))
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(beta - alpha, [tail, 1 - tail])
    verdict = (
        "the data term falls faster" if low > 0 else "the model term falls faster" if high < 0 else "not distinguished"
    )
    return f"{name}: {values}; β - α lies in [{low:+.3f}, {high:+.3f}] ({settings.confidence:.0%} interval): {verdict}."


def allocation(f: Fitted, settings: ScalingSettings, said: list[str], unsaid: list[str]) -> None:
    """N* ~ C^a with a = beta/(alpha + beta), if compute goes as N D."""
    if not f.entry.identified:
        unsaid.append(
            f"{NAMES[f.entry.target]}: a compute-optimal split of model and data, as the joint law is not determined."
        )
        return
    alpha, beta = (f.replicas[:, f.law.parameters.index(p)] for p in ("alpha", "beta"))
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(beta / (alpha + beta), [tail, 1 - tail])
    e = f.entry.estimates
    a = e["beta"].value / (e["alpha"].value + e["beta"].value)
    cost = np.array([p.flops / (p.body_parameters * p.structures) for p in f.points])
    caveat = (
        f"flops/(N D) varies by a factor {cost.max() / cost.min():.2f} here"
        if cost.min() > 0
        else "flops are not recorded"
    )
    said.append(
        f"{NAMES[f.entry.target]}: the best split of compute C ~ N D within the measured range is "
        f"N ~ C^{a:.2f} [{low:.2f}, {high:.2f}], D ~ C^{1 - a:.2f} ({caveat})."
    )


# ------------------------------------------------------------------------------------------------------- width, depth
def width_depth_pairs(points: list[Point]) -> list[Pair]:
    """For each deeper run at the same data, epochs and seed the shallower run nearest in size, per depth."""
    nearest: dict[tuple, Pair] = {}
    good = [p for p in points if not p.diverged and math.isfinite(p.loss) and p.loss > 0]
    for a, b in combinations(sorted(good, key=lambda p: (p.depth, p.body_parameters, p.run)), 2):
        same = (a.model, a.structures, a.epochs, a.seed) == (b.model, b.structures, b.epochs, b.seed)
        if a.depth < b.depth and a.width > b.width and same and apart(a, b) <= CLOSE:
            key = (b.run, a.depth)
            if key not in nearest or apart(a, b) < apart(*nearest[key]):
                nearest[key] = Pair(a, b)
    return sorted(
        nearest.values(), key=lambda x: (x.wide.depth, x.deep.depth, x.deep.structures, x.deep.width, x.deep.run)
    )


def apart(a: Point, b: Point) -> float:
    return abs(a.body_parameters / b.body_parameters - 1)


def claim_depth(pairs: list[Pair], said: list[str], unsaid: list[str]) -> None:
    beyond = [x for x in pairs if x.wide.depth >= PAPER_DEPTH]
    if beyond:
        wide = sum(x.gain("loss") < 0 for x in beyond)
        said.append(
            f"That width beats depth past {PAPER_DEPTH} layers (same paper): of {len(beyond)} "
            f"{'pair' if len(beyond) == 1 else 'pairs'} of nearly equal size the wider has the lower loss in {wide}, "
            f"the deeper in {len(beyond) - wide}; loss of the deeper relative to the wider: "
            + ", ".join(f"{-x.gain('loss'):+.1%}" for x in beyond)
            + "."
        )
    else:
        unsaid.append(
            f"That width beats depth past {PAPER_DEPTH} layers: no two runs of different depth, the shallower of at "
            f"least {PAPER_DEPTH} layers, are within {CLOSE:.0%} in body parameters at equal data."
        )
    if pairs and len({x.deep.seed for x in pairs}) == 1:
        unsaid.append(f"An interval for width against depth: {len(pairs)} compared, one seed each.")


def depth_sentence(x: Pair, targets: tuple[str, ...]) -> str:
    size = x.deep.body_parameters / x.wide.body_parameters - 1
    by = ", ".join(f"{NAMES[t].lower()} {abs(x.gain(t)):.1%} {'lower' if x.gain(t) > 0 else 'higher'}" for t in targets)
    return (
        f"Width against depth at D = {x.deep.structures:,}: depth {x.deep.depth} (width {x.deep.width}, {size:+.1%} "
        f"parameters) against depth {x.wide.depth} (width {x.wide.width}): {by} for the deeper."
    )


# ---------------------------------------------------------------------------------------------------------- the limits
def extrapolation(joint: list[Fitted]) -> str:
    """The range, and how well the law foretells the largest runs from the others: the one extrapolation tried."""
    points = joint[0].points
    n, d = [p.body_parameters for p in points], [p.structures for p in points]
    decades = f"{math.log10(max(n) / min(n)):.1f} decades of N and {math.log10(max(d) / min(d)):.1f} of D"
    beyond = f"Any use of these laws beyond N = {max(n):,} or D = {max(d):,}"
    text = f"{beyond}: they rest on {len(points)} points over {decades}."
    tries = []
    for f in joint:
        inside = [p for p in f.points if p.body_parameters < max(n) and p.structures < max(d)]
        outside = [p for p in f.points if p not in inside]
        if len(inside) > len(f.law.parameters):
            columns = [
                [(p.body_parameters, p.structures, getattr(p, f.entry.target)) for p in ps] for ps in (inside, outside)
            ]
            (ni, di, li), (no, do, lo) = (np.array(c, float).T for c in columns)
            worst = np.abs(f.law(optimum(f.law, ni, di, li).values, no, do)[0] / lo - 1).max()
            tries.append(f"{NAMES[f.entry.target].lower()} {worst:.1%}")
    if tries:
        text += (
            " Fitted without the largest model and the largest data size, they miss those runs by at most: "
            f"{', '.join(tries)}. That tests one step of the grid, not more."
        )
    return text


def confounded(grid: Grid, points: tuple[Point, ...]) -> list[str]:
    ratio = {p.epochs for p in points}
    if len(ratio) != 1:
        return []
    return [
        f"An effect of unique data alone: every run makes {grid.epochs:g} epochs, so twice the data is also twice the "
        "optimiser steps and twice the compute; and no learning rate was tuned per point."
    ]


def open_laws(fitted: list[Fitted]) -> list[str]:
    """Targets that share the same doubts share the sentence."""
    together = defaultdict(list)
    for f in fitted:
        formula = f.entry.formula.removeprefix("L = ").replace("alpha", "α").replace("beta", "β")
        where = f.entry.where.split(":")[0]
        together[f"along {f.law.axes} alone, at {where} ({formula}): {'; '.join(f.entry.notes)}."].append(
            NAMES[f.entry.target]
        )
    return [f"{', '.join(names)}: the law {text}" for text, names in together.items()]


def noise(points: list[Point], targets: tuple[str, ...], said: list[str], unsaid: list[str]) -> None:
    """The spread over seeds, where there is more than one; without it an interval is of the fit, not of a training."""
    cells = defaultdict(list)
    for p in points:
        if not p.diverged:
            cells[p.model, p.width, p.depth, p.structures, p.epochs].append(p)
    repeated = [ps for ps in cells.values() if len({p.seed for p in ps}) > 1]
    if not repeated:
        unsaid.append(
            "The noise of training: every run has one seed. The intervals are from resampling runs, and hold the "
            "scatter about the law, not what another seed would give."
        )
        return
    spreads = []
    for t in targets:
        groups = [[getattr(p, t) for p in ps] for ps in repeated]
        spreads.append(f"{NAMES[t].lower()} {max(np.std(v, ddof=1) / np.mean(v) for v in groups):.1%}")
    said.append(
        f"Seeds: {len(repeated)} {'run was' if len(repeated) == 1 else 'runs were'} repeated; the largest standard "
        f"deviation among them is {', '.join(spreads)}."
    )


def shown(e: Estimate) -> str:
    return f"{e.value:.3g}" if e.low is None else f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]"
