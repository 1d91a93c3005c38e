"""The fit of one chosen law to the points of a CSV file, its comparison with rival laws, and what both show in sentences."""

from __future__ import annotations

import numpy as np

from gnnscale.contract.errors import UserError
from gnnscale.contract.scaling_results import Fit, LawFit
from gnnscale.contract.settings import ScalingSettings
from gnnscale.scaling.csv_points import CsvPoints, suggest_nearest
from gnnscale.scaling.fitting.fit import fit_data, format_range, stored_resamples
from gnnscale.scaling.fitting.fitted import Observations
from gnnscale.scaling.fitting.laws import LAWS, Law
from gnnscale.scaling.words import format_estimate, format_number, format_percent, join_names, with_greek_letters

RIVAL_LAWS = ("Hoffmann", "OverTraining", "Kaplan", "KaplanFloor")  # laws of N and D, compared with each other


def find_law(name: str) -> Law:
    """Return the law of this name, in whatever case."""
    by_lower_case = {each.lower(): law for each, law in LAWS.items()}
    if name.lower() in by_lower_case:
        return by_lower_case[name.lower()]
    raise UserError(f"no law {name!r}{suggest_nearest(name, list(LAWS))}; there are: {', '.join(LAWS)}")


def fit_single_law(points: CsvPoints, law: Law, settings: ScalingSettings) -> Fit:
    """Fit the law and, if it has rivals, these to the same points."""
    order = np.argsort(number_cells(points.at), kind="stable")
    at = {axis: sizes[order] for axis, sizes in points.at.items()}
    data = Observations(at, points.loss[order], number_cells(at))
    cells = int(data.cell.max()) + 1
    if cells < len(law.parameters):
        raise UserError(
            f"{points.path}: {cells} different sizes for the {len(law.parameters)} parameters of {law.name}"
        )
    where = "all points: " + ", ".join(
        f"{axis} = {points.columns.get(axis, 'C/(6 N)')} {format_range(at[axis])}" for axis in at
    )
    fits = []
    for other in [law, *(LAWS[name] for name in RIVAL_LAWS if name != law.name and law.name in RIVAL_LAWS)]:
        if cells < len(other.parameters):
            continue
        chosen = other is law
        entry, _, replicas = fit_data(other, data, settings if chosen else settings.model_copy(update={"bootstrap": 0}))
        about = {
            "where": where,
            "points": tuple(f"line {points.lines[k]}" for k in order),
            "excluded": points.excluded,
            "chosen": chosen,
            "replicas": stored_resamples(replicas),
        }
        fits.append(entry.model_copy(update=about))
    return Fit(
        laws=tuple(fits),
        bootstrap=settings.bootstrap,
        confidence=settings.confidence,
        seed=settings.seed,
        drop_highest=settings.drop_highest,
        findings=describe_fit(fits, settings, len(points.loss), cells),
        unsupported=describe_limits(fits[0], len(points.loss), cells),
    )


def number_cells(at: dict[str, np.ndarray]) -> np.ndarray:
    """Return a number for each row by its sizes: rows of the same sizes are seeds of one run."""
    return np.unique(np.stack([at[axis] for axis in at], axis=1), axis=0, return_inverse=True)[1].reshape(-1)


# --------------------------------------------------------------------------------------------------------- sentences
def describe_fit(fits: list[LawFit], settings: ScalingSettings, points: int, cells: int) -> tuple[str, ...]:
    """Describe what the fit of the first law shows, with the others as its rivals."""
    law, *rivals = fits
    values = ", ".join(f"{with_greek_letters(name)} = {format_estimate(e)}" for name, e in law.estimates.items())
    confidence = format_percent(settings.confidence)
    sizes = f", {cells} different sizes" if cells < points else ""
    findings = [
        f"{law.law}: L = {with_greek_letters(law.formula)} with {values} ({confidence} intervals).",
        f"{points} points{sizes}; rms residual of log L {format_percent(law.log_rms)}; "
        f"{format_percent(law.at_optimum)} of the starts reach the optimum.",
    ]
    if law.allocation and law.identified:
        findings.append(f"The best N for compute C ~ N D grows as C^a with a = {format_estimate(law.allocation)}.")
    if law.held_out:
        held = law.held_out
        findings.append(
            f"Fitted without the {held.points} largest points, it misses them by {format_percent(held.mean)} on average, "
            f"{format_percent(held.worst)} at worst; they reach {format_number(held.beyond)} times as far."
        )
    if rivals and law.aicc is not None:
        findings.append(compare_with_rivals(law, rivals))
    rules = sorted(set(law.excluded.values()))
    if rules:
        findings.append(f"Left out: {len(law.excluded)} ({join_names(rules)}); fit.json names each line.")
    return tuple(findings)


def compare_with_rivals(law: LawFit, rivals: list[LawFit]) -> str:
    """Compare a law with others on the same points by criteria and by how they predict the largest points."""
    each = [
        f"{r.law} {r.aicc - law.aicc:+.1f} and {r.bic - law.bic:+.1f}"
        for r in rivals
        if r.aicc is not None and r.bic is not None and law.aicc is not None and law.bic is not None
    ]
    text = f"AICc and BIC of other laws on the same points, less its own (lower is better): {'; '.join(each)}."
    errors = [(r.held_out.mean, r.law) for r in (law, *rivals) if r.held_out]
    if len(errors) > 1:
        error, best = min(errors, key=lambda each: each[0])
        text += f" {best} predicts the largest points best, to {format_percent(error)} on average."
    return text


def describe_limits(law: LawFit, points: int, cells: int) -> tuple[str, ...]:
    """Describe what the points do not support."""
    limits = []
    if law.notes:
        begin = "Notes" if law.identified else "Parameters that the points do not determine"
        limits.append(f"{begin}: {'; '.join(law.notes)}.")
    if not law.held_out:
        limits.append("Extrapolation: too few points are left without the largest ones to try it.")
    if cells == points:
        limits.append("The noise of training: no size was run twice. Intervals hold the scatter between sizes.")
    return tuple(limits)
