"""Advice in words: the lines that `advise` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workflow.advise.largest_study import LOSS_TOLERANCE, MAX_EXTRAPOLATION, MAX_RESIDUAL
from workflow.config.site import SiteConfig

MIN_FIXED_SHARE = 0.005  # of a training's time, below which it is not mentioned
SHARES_OF_LOSS = (("floor", "floor"), ("of_model", "from too few parameters"), ("of_data", "from too few data"))


def format_advice(x: dict[str, Any], root: Path, site: SiteConfig, name: str) -> str:
    """Return the text of an advice for a site called `name`."""
    unit = "GPU" if site.node.gpus else "rank" if site.has_scheduler else "core"
    return "\n".join([*head_lines(x, root, unit, name), *training_lines(x, unit), *caveat_lines(x, unit)])


def head_lines(x: dict[str, Any], root: Path, unit: str, name: str) -> list[str]:
    """Return the lines about the law and the budget."""
    rate = f"{x['flops']:.3g} FLOP at {x['flops_per_second'] / 1e12:.3g} TFLOP/s per {unit} ({x['speed']})"
    fixed = f"; {format_percent(x['fixed'])} of the time is start-up and overhead per step"
    return [
        f"{root}: {x['target']}, {x['formula']} from {x['runs']} runs (rms residual {format_percent(x['log_rms'])})",
        f"{x['gpu_hours']:,g} {unit}-hours on {name}: {rate}" + (fixed if x["fixed"] > MIN_FIXED_SHARE else ""),
    ]


def training_lines(x: dict[str, Any], unit: str) -> list[str]:
    """Return the lines about model, data, job and expected loss."""
    end = f" (the {x['end']})" if x["end"] else ""
    memory = f"; memory: {x['memory']}" if x["memory"] else ""
    shares = " + ".join(f"{x[part]:.3g} {words}" for part, words in SHARES_OF_LOSS if x[part])
    gains = {what: format_percent(-gain) for what, gain in x["twice"].items()}
    return [
        f"  model   {x['model']}, depth {x['depth']}, width {x['width']:,}{end}: "
        f"N = {format_range(x['parameters'])} body parameters",
        f"  data    D = {format_range(x['structures'])} structures, {x['epochs']:g} epochs "
        f"({x['atoms']:.3g} atoms; {3 * x['atoms_seen']:.3g} force labels seen)",
        f"  job     {x['nodes']} node(s), {x['ranks']} {unit}(s), {x['hours']:,.3g} hours{memory}",
        f"  {x['target']:7} {format_range(x['loss'])} expected = {shares}",
        f"  twice   the hours: {gains['hours']}; the data alone: {gains['data']}; "
        f"the parameters alone: {gains['parameters']}",
    ]


def caveat_lines(x: dict[str, Any], unit: str) -> list[str]:
    """Return the lines about what the advice does not cover."""
    lines = [
        f"Brackets hold {format_percent(x['confidence'])} of the resampled fits; "
        "they do not cover that the law may fail beyond the runs."
    ]
    if x["limited"]:
        lines.append(
            "All existing structures are used, by the smallest model within "
            f"{format_percent(LOSS_TOLERANCE)} of the least loss: these runs do not show what more epochs would bring."
        )
    if x["log_rms"] > MAX_RESIDUAL:
        missed = format_percent(x["log_rms"])
        lines.append(f"The law does not even describe the runs it was fitted to: it misses them by {missed}.")
    beyond = x["beyond"]
    far = f"{beyond['flops']:,.3g} times the compute, {beyond['parameters']:,.3g} times the parameters and "
    far += f"{beyond['structures']:,.3g} times the data of the largest run"
    if not x["next_hours"]:
        return [*lines, f"This is {far}."]
    first = f"First train what {x['next_hours']:,.3g} {unit}-hours buy, {MAX_EXTRAPOLATION:g} times the largest"
    return [*lines, f"This is {far}: a direction, not a plan. {first}, and fit again."]


def format_range(x: dict[str, float | None]) -> str:
    ends = "" if x["low"] is None else f" [{x['low']:.3g}, {x['high']:.3g}]"
    return f"{x['value']:.3g}{ends}"


def format_percent(share: float) -> str:
    return f"{100 * share:.1f} %"
