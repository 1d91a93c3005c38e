"""The three questions of a scaling study, each with its answer in words, the evidence, and whether it is supported; and
the laws that were weighed against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from gnnscale.report.markup import Raw, table
from gnnscale.report.series import envelope
from gnnscale.report.study import Study, short, sound
from gnnscale.scaling.findings import HOLDS
from gnnscale.scaling.isoflop import growth
from gnnscale.scaling.words import greek, joined, number, percent, shown
from gnnscale.specs import LawFit

LEAST = 4  # runs on a frontier for a slope of it


class Answer(NamedTuple):
    question: str
    answer: str
    evidence: str
    supported: str  # "yes", "in part: ...", "no: ..."


def answers(study: Study) -> list[Answer]:
    if not study.grid():
        return []
    return [
        along(study, "N", "How does the loss fall with the size of the model?", "loss_parameters"),
        along(study, "D", "How does it fall with the data?", "loss_data"),
        compute(study),
    ]


def along(study: Study, axis: str, question: str, figure: str) -> Answer:
    """By the law that is gone by, if it has the axis; else by the law along this axis alone; else by neighbours."""
    exponent = {"N": "alpha", "D": "beta"}[axis]
    law = study.chosen("loss")
    alone = [one for one in study.fit.laws if one.target == "loss" and one.law in (f"Power{axis}", f"PurePower{axis}")]
    candidates = [one for one in [law, *alone] if one and one.identified and axis in one.formula]
    where = f"figure {figure}; {counted(study, axis)}"
    if not candidates:
        why = joined(dict.fromkeys(note for one in alone for note in one.notes[:1])) or "no law along this axis"
        return Answer(question, "The runs determine no exponent; the first finding above is measured without a law.", where,
                      f"no: {why}")  # fmt: skip
    one = candidates[0]
    e = one.estimates.get(exponent) or one.estimates["gamma"]
    spot = "" if one is law else f", at {one.where.split(':')[0]}"
    floor = one.estimates.get("E")
    text = f"As a power of {axis} with exponent −{shown(e)}{spot}"
    text += f", down to a floor of {shown(floor)}." if floor and floor.value else ", with no floor in sight."
    evidence = f"{where}; {greek(one.formula)}, rms residual {percent(one.log_rms)}"
    if one.held_out:
        evidence += f"; foretold without the largest: to {percent(one.held_out.worst)}"
    return Answer(question, text, evidence, verdict(one))


def verdict(law: LawFit) -> str:
    if law.log_rms > HOLDS:
        return f"in part: the law misses the runs by {percent(law.log_rms)}"
    if law.held_out and law.held_out.worst > 2 * HOLDS:
        return f"within the grid only: beyond, it was wrong by up to {percent(law.held_out.worst)}"
    return "yes, within the grid"


def counted(study: Study, axis: str) -> str:
    sizes = sorted({getattr(p, {"N": "body_parameters", "D": "structures"}[axis]) for p in study.grid()})
    return f"{len(sizes)} sizes over a factor of {number(sizes[-1] / sizes[0])}"


def compute(study: Study) -> Answer:
    """Slopes of both measured frontiers, and the split that follows from the joint law."""
    question = "How does it fall with compute, and how is compute best split?"
    points = [p for p in study.points if sound(p) and p.flops > 0]
    costs = {"FLOP": {p.run: p.flops for p in points}}
    if points and all(study.spent.get(short(p.run)) for p in points):
        costs["GPU-seconds (process-seconds where there are no GPUs)"] = {p.run: study.spent[short(p.run)] for p in points}
    slopes = []
    for unit, cost in costs.items():
        best = envelope(points, cost)
        if len(best) >= LEAST:
            slope = growth(np.array([cost[p.run] for p in best]), np.array([p.loss for p in best])).exponent
            if slope.low is not None and math.isfinite(slope.low):
                falls = slope.model_copy(update={"value": -slope.value, "low": -slope.high, "high": -slope.low})
                slopes.append(f"with exponent −{shown(falls)} of C in {unit} ({len(best)} runs)")
    text = f"Along the frontier the loss falls {joined(slopes)}. " if slopes else "Too few runs are on the frontier for a slope. "
    joint = study.joint("loss")
    if joint and joint.identified and joint.allocation and joint.log_rms <= HOLDS:
        a = joint.allocation
        text += f"The best N grows with exponent {shown(a)} of C, the best D with {1 - a.value:.3g}."
        state = "yes, within the grid" if slopes else "in part: the split alone"
    else:
        why = "is not determined" if joint is None or not joint.identified else "does not hold"
        text += "No split can be given."
        state = f"in part: the joint law, from which the split would follow, {why}" if slopes else f"no: the joint law {why}"
    return Answer(question, text, "figure compute; the joint law of the table", state)


def section_of(study: Study, prose: Callable[[str], str]) -> str:
    """As a table; `prose` turns our sentences into HTML."""
    rows = [[Raw(f'<div class="wide-text">{prose(cell)}</div>') for cell in a] for a in answers(study)]
    return table(["question", "answer", "evidence", "supported?"], rows, None, 4)


def compared(laws: Iterable[LawFit]) -> str:
    """One row a law: on the same points, so that the criteria can be compared."""

    def plain(value: float | None) -> str:
        return "–" if value is None else f"{value:,.1f}"

    rows = []
    for law in laws:
        held = [percent(law.held_out.mean), percent(law.held_out.worst)] if law.held_out else ["–", "–"]
        rows.append([law.law, percent(law.log_rms), plain(law.aicc), plain(law.bic), *held, "yes" if law.identified else "no"])
    heads = ["law", "rms residual", "AICc", "BIC", "largest points missed by, mean", "at worst", "determined"]
    return table(heads, rows)
