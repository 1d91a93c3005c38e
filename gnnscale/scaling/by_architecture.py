"""The joint law of each model that has a grid of its own, in a sentence: is its exponent another, or its coefficient alone?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnnscale.contract.scaling_results import LawFit
from gnnscale.scaling.fitting.identifiability import MAX_RESIDUAL
from gnnscale.scaling.grid import WHERE_MODEL
from gnnscale.scaling.words import TARGET_NAMES, format_estimate, format_percent, join_names, with_greek_letters

if TYPE_CHECKING:
    from gnnscale.scaling.fitting.fitted import FittedLaw

EXPONENTS = {
    "Hoffmann": ("alpha", "beta"),
    "EqualPowers": ("gamma",),
}  # the second for grids that do not determine the first


def compare_exponents(model: str, grid: FittedLaw, fitted: list[FittedLaw], others: list[FittedLaw]) -> list[str]:
    """Exponents of every model with a grid of its own, of one target, by the law that more of them determine.

    `grid`: the joint law of `model`, which is among `fitted`.
    """
    target = grid.entry.target
    alike = [f for f in fitted if f.entry.where == grid.entry.where] + others
    rows = {law: laws_by_model(model, law, [f for f in alike if f.entry.target == target]) for law in EXPONENTS}
    law = max(rows, key=lambda law: sum(e.identified for e in rows[law].values()))  # the first of equals
    if len(rows[law]) < 2:
        return []
    known = {name: e.estimates for name, e in rows[law].items() if e.identified}
    unknown = [name for name in rows[law] if name not in known]
    parts = [
        f"{name} {', '.join(f'{with_greek_letters(x)} = {format_estimate(e[x])}' for x in EXPONENTS[law])}{describe_residual(rows[law][name])}"
        for name, e in known.items()
    ]
    form = "" if law == "Hoffmann" or not known else f" in {with_greek_letters(next(iter(rows[law].values())).formula)}"
    text = f"By model, exponents of the {TARGET_NAMES[target]}{form}: {'; '.join(parts)}" if parts else ""
    if len(known) > 1 and all(e[x].low is not None for e in known.values() for x in EXPONENTS[law]):
        same = all(
            max(e[x].low for e in known.values()) <= min(e[x].high for e in known.values()) for x in EXPONENTS[law]
        )
        text += ": the intervals overlap, so the difference is not resolved" if same else ": not all intervals overlap"
    if unknown:
        text += f"{'; ' if text else 'By model: '}not determined for {join_names(unknown)}"
    return [f"{text}."]


def describe_residual(e: LawFit) -> str:
    return f" (rms residual {format_percent(e.log_rms)}{': the law does not hold' * (e.log_rms > MAX_RESIDUAL)})"


def laws_by_model(model: str, law: str, fitted: list[FittedLaw]) -> dict[str, LawFit]:
    """One law of one target, by model; `model` has the main grid."""
    mine = [f.entry for f in fitted if f.entry.law == law]
    return {model_of(e.where, model): e for e in mine}


def model_of(where: str, model: str) -> str:
    return where.split(":")[0].removeprefix(WHERE_MODEL) if where.startswith(WHERE_MODEL) else model
