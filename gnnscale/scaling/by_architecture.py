"""A comparison of models that have grids of their own, in their exponents and in their coefficients."""

from __future__ import annotations

from gnnscale.contract.scaling_results import Estimate, LawFit
from gnnscale.scaling.fitting.fitted import FittedLaw
from gnnscale.scaling.fitting.identifiability import MAX_RESIDUAL
from gnnscale.scaling.grid import WHERE_MODEL
from gnnscale.scaling.words import TARGET_NAMES, format_estimate, format_percent, join_names, with_greek_letters

# The second is for grids that do not determine the first.
EXPONENTS = {"Hoffmann": ("alpha", "beta"), "EqualPowers": ("gamma",)}


def compare_exponents(model: str, grid: FittedLaw, fitted: list[FittedLaw], others: list[FittedLaw]) -> list[str]:
    """Compare the exponents of one target between models, by the law that more of them determine.

    `grid` is the joint law of `model`, which is among `fitted`.
    """
    target = grid.entry.target
    alike = [f for f in fitted if f.entry.where == grid.entry.where] + others
    rows = {law: laws_by_model(model, law, [f for f in alike if f.entry.target == target]) for law in EXPONENTS}
    law = max(rows, key=lambda law: sum(e.identified for e in rows[law].values()))  # the first of equals
    if len(rows[law]) < 2:
        return []
    determined = {name: e.estimates for name, e in rows[law].items() if e.identified}
    undetermined = [name for name in rows[law] if name not in determined]
    parts = [f"{name} {list_exponents(e, law)}{describe_residual(rows[law][name])}" for name, e in determined.items()]
    form = (
        ""
        if law == "Hoffmann" or not determined
        else f" in {with_greek_letters(next(iter(rows[law].values())).formula)}"
    )
    text = f"By model, exponents of the {TARGET_NAMES[target]}{form}: {'; '.join(parts)}" if parts else ""
    names = EXPONENTS[law]
    if len(determined) > 1 and all(e[name].has_interval for e in determined.values() for name in names):
        same = all(have_common_point([e[name].interval for e in determined.values()]) for name in names)
        text += ": the intervals overlap, so the difference is not resolved" if same else ": not all intervals overlap"
    if undetermined:
        text += f"{'; ' if text else 'By model: '}not determined for {join_names(undetermined)}"
    return [f"{text}."]


def list_exponents(estimates: dict[str, Estimate], law: str) -> str:
    return ", ".join(f"{with_greek_letters(name)} = {format_estimate(estimates[name])}" for name in EXPONENTS[law])


def have_common_point(intervals: list[tuple[float, float]]) -> bool:
    return max(low for low, _ in intervals) <= min(high for _, high in intervals)


def describe_residual(e: LawFit) -> str:
    return f" (rms residual {format_percent(e.log_rms)}{': the law does not hold' * (e.log_rms > MAX_RESIDUAL)})"


def laws_by_model(model: str, law: str, fitted: list[FittedLaw]) -> dict[str, LawFit]:
    """Return the fits of one law to one target, by model; `model` has the main grid."""
    entries = [f.entry for f in fitted if f.entry.law == law]
    return {model_of(e.where, model): e for e in entries}


def model_of(where: str, model: str) -> str:
    """Return the model whose points `where` names; `model` has the main grid."""
    return where.split(":")[0].removeprefix(WHERE_MODEL) if where.startswith(WHERE_MODEL) else model
