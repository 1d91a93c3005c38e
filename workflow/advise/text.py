"""TODO: say what a reader finds here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workflow.advise.largest_study import ENOUGH, FAR, HOLDS
from workflow.config.site import SiteConfig


def text(x: dict[str, Any], root: Path, site: SiteConfig, name: str) -> str:
    unit = "GPU" if site.node.gpus else "core" if not site.batch else "rank"
    shares = " + ".join(
        f"{x[part]:.3g} {words}"
        for part, words in (("floor", "floor"), ("of_model", "for want of parameters"), ("of_data", "for want of data"))
        if x[part]
    )
    twice, where = x["twice"], x["beyond"]
    lines = [
        f"{root}: {x['target']}, {x['formula']} from {x['runs']} runs (rms residual {percent(x['log_rms'])})",
        f"{x['gpu_hours']:,g} {unit}-hours on {name}: {x['flops']:.3g} FLOP at {x['flops_per_second'] / 1e12:.3g} TFLOP/s "
        f"a {unit} ({x['speed']})"
        + (
            f"; {percent(x['fixed'])} of the time is what start and steps cost at any size"
            if x["fixed"] > 0.005
            else ""
        ),
        f"  model   {x['model']}, depth {x['depth']}, width {x['width']:,}"
        + (f" (the {x['end']})" if x["end"] else "")
        + f": N = {shown(x['parameters'])} body parameters",
        f"  data    D = {shown(x['structures'])} structures, {x['epochs']:g} epochs "
        f"({x['atoms']:.3g} atoms; {3 * x['atoms_seen']:.3g} force labels seen)",
        f"  job     {x['nodes']} node(s), {x['ranks']} {unit}(s), {x['hours']:,.3g} hours"
        + (f"; memory: {x['memory']}" if x["memory"] else ""),
        f"  {x['target']:7} {shown(x['loss'])} expected = {shares}",
        f"  twice   the hours: {percent(-twice['hours'])}; the data alone: {percent(-twice['data'])}; "
        f"the parameters alone: {percent(-twice['parameters'])}",
        f"Brackets: {percent(x['confidence'])} of the resampled runs; they do not hold that the law may fail further out.",
    ]
    if x["limited"]:
        lines.append(
            f"All the structures that there are, and the smallest model within {percent(ENOUGH)} of the least loss: "
            "what more epochs would bring these runs do not say."
        )
    if x["log_rms"] > HOLDS:
        lines.append(f"The law does not hold even for the runs it is from: it misses them by {percent(x['log_rms'])}.")
    far = f"{where['flops']:,.3g} times the compute, {where['parameters']:,.3g} times the parameters and "
    far += f"{where['structures']:,.3g} times the data of the largest run"
    if x["next_hours"]:
        lines.append(
            f"This is {far}: a direction and no plan. Train first what {x['next_hours']:,.3g} {unit}-hours buy, "
            f"{FAR:g} times the largest, and fit again."
        )
    else:
        lines.append(f"This is {far}.")
    return "\n".join(lines)


def shown(x: dict[str, float | None]) -> str:
    ends = "" if x["low"] is None else f" [{x['low']:.3g}, {x['high']:.3g}]"
    return f"{x['value']:.3g}{ends}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
