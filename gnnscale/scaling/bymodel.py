"""The joint law of each model that has a grid of its own, in a sentence: is its exponent another, or its coefficient alone?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnnscale.scaling.grid import WHERE_MODEL
from gnnscale.scaling.words import NAMES, joined, shown

if TYPE_CHECKING:
    from gnnscale.scaling.fit import Fitted


def by_model(model: str, joint: list[Fitted], others: list[Fitted]) -> list[str]:
    """Exponents of every model with a grid of its own, of the first target; without an interval none are compared."""
    target = joint[0].entry.target
    rows = {model: joint[0].entry} | {f.entry.where.split(":")[0].removeprefix(WHERE_MODEL): f.entry for f in others
                                      if f.entry.target == target}  # fmt: skip
    if len(rows) < 2:
        return []
    known = {name: e.estimates for name, e in rows.items() if e.identified}
    unknown = [name for name in rows if name not in known]
    parts = [f"{name} α = {shown(e['alpha'])}, β = {shown(e['beta'])}" for name, e in known.items()]
    text = f"By model, exponents of the {NAMES[target]}: {'; '.join(parts)}" if parts else ""
    if len(known) > 1:
        same = all(max(e[x].low for e in known.values()) <= min(e[x].high for e in known.values()) for x in ("alpha", "beta")
                   if all(e[x].low is not None for e in known.values()))  # fmt: skip
        text += ": the intervals overlap, so a better model is seen as a shift" if same else ": not all intervals overlap"
    if unknown:
        text += f"{'; ' if text else 'By model: '}not determined for {joined(unknown)}"
    return [f"{text}."]
