"""Tables of fitted laws: exponents by target, and the joint laws of the loss compared."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from html import escape

from gnnscale.contract.scaling_results import Estimate, LawFit
from gnnscale.report.html import RawHtml, render_table
from gnnscale.report.study_results import TARGETS, StudyResults
from gnnscale.scaling.fitting.laws import JOINT_FORMS, MAX_EXPONENT
from gnnscale.scaling.grid import WHERE_MODEL
from gnnscale.scaling.words import format_estimate, format_percent, with_greek_letters

GRID_PART_NAMES = {"the whole grid": "grid", "the largest data size": "largest D", "the largest model": "largest N"}


def render_laws(study: StudyResults) -> str:
    """Render for each target the joint law, the selected law, and one law along each axis; fit.json has all others."""
    fit, rows, classes, notes, last = study.fit, [], [], defaultdict(list), ""
    for law in [law for target in TARGETS for law in select_tabulated_laws(fit.laws, target)]:
        name, unit, factor = TARGETS[law.target]
        place = GRID_PART_NAMES.get(law.where.split(":")[0], law.where)
        e = law.estimates
        alpha, beta = (
            e.get(p, e.get("gamma") if axis in law.formula else None) for p, axis in (("alpha", "N"), ("beta", "D"))
        )
        state = "yes, drawn" if law.chosen else "yes" if law.identified else "no"
        rows.append(
            [
                RawHtml("" if name == last else f"{name}<br>{unit}"),
                keep_on_one_line(render_formula(law.formula)),
                f"{place}, {len(law.points)}",
            ]
            + [
                format_parameter(e.get("E"), factor),
                format_parameter(alpha),
                format_parameter(beta),
                format_percent(law.log_rms),
                state,
            ]
        )
        classes.append("chosen" if law.chosen else "" if law.identified else "out")
        last = name
        if law.notes:
            notes[f"{law.formula.removeprefix('L = ')}, {place}: {'; '.join(law.notes)}."].append(name)
    heads = ["target L", "law", "runs", "E", "exponent of N", "exponent of D", "rms residual", "determined"]
    intro = (
        f'<p class="note">N: body parameters, D: unique training structures. Huber loss (10⁻³) of the logarithm, '
        f"exponents bounded to (0, {MAX_EXPONENT:g}]. Brackets: {format_percent(fit.confidence)} intervals from "
        f"{fit.bootstrap:,} resamplings of the runs (seed {fit.seed}). Grey: not every parameter is determined. If the joint "
        "law is not determined, figures show its determined part of least AICc. A, B and all laws that were tried are in "
        "fit.json.</p>"
    )
    reasons = "".join(f"<li>{escape(', '.join(names))}: {render_formula(text)}</li>" for text, names in notes.items())
    more = f'<details class="note"><summary>Why a law is not determined, and other notes</summary><ul>{reasons}</ul></details>'
    return intro + render_table(heads, rows, classes, 3) + (more if reasons else "") if rows else ""


def select_tabulated_laws(laws: tuple[LawFit, ...], target: str) -> list[LawFit]:
    mine = [law for law in laws if law.target == target and not law.where.startswith(WHERE_MODEL)]
    whole = [law for law in mine if law.law == "Hoffmann" or law.chosen]
    for axis in "ND":  # the law with a floor if that is determined, otherwise the one without
        along = [law for law in mine if law.law in (f"Power{axis}", f"PurePower{axis}") and "largest" in law.where]
        whole += along[:1] if along and along[0].identified else along[1:2]
    return whole


def select_joint_laws(study: StudyResults) -> list[LawFit]:
    mine = [law for law in study.fit.laws if law.target == "loss" and not law.where.startswith(WHERE_MODEL)]
    return [law for law in mine if law.law in JOINT_FORMS]


def format_parameter(e: Estimate | None, factor: float = 1.0) -> str:
    if e is None:
        return "–"
    if factor == 1.0 and e.value > 0.99 * MAX_EXPONENT:  # of an exponent
        return f"at its bound of {MAX_EXPONENT:g}"
    return format_estimate(e, factor)


def keep_on_one_line(html: str) -> RawHtml:
    return RawHtml(f'<span class="formula">{html}</span>')


def render_law_comparison(laws: Iterable[LawFit]) -> str:
    """Render one row per law, all fitted to the same points, so that the criteria can be compared."""

    def plain(value: float | None) -> str:
        return "–" if value is None else f"{value:,.1f}"

    rows = []
    for law in laws:
        held = [format_percent(law.held_out.mean), format_percent(law.held_out.worst)] if law.held_out else ["–", "–"]
        rows.append(
            [
                law.law,
                format_percent(law.log_rms),
                plain(law.aicc),
                plain(law.bic),
                *held,
                "yes" if law.identified else "no",
            ]
        )
    heads = ["law", "rms residual", "AICc", "BIC", "mean error at the largest points", "worst", "determined"]
    return render_table(heads, rows)


def render_formula(formula: str) -> str:
    """Turn `E + A/N^alpha` into `E + A/N<sup>α</sup>`."""
    return re.sub(r"\^(\w+)", r"<sup>\1</sup>", escape(with_greek_letters(formula)))
