"""Advice in words: the lines that `advise` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workflow.advise.largest_study import LOSS_TOLERANCE, MAX_EXTRAPOLATION, MAX_RESIDUAL
from workflow.config.site import SiteConfig

MIN_FIXED_SHARE = 0.005  # of a training's time, below which it is not mentioned
SHARES_OF_LOSS = (("floor", "floor"), ("of_model", "from too few parameters"), ("of_data", "from too few data"))


def format_advice(advice: dict[str, Any], root: Path, site: SiteConfig, name: str) -> str:
    """Return the text of an advice for a site called `name`."""
    unit = "GPU" if site.node.gpus else "rank" if site.has_scheduler else "core"
    return "\n".join(
        [*head_lines(advice, root, unit, name), *training_lines(advice, unit), *caveat_lines(advice, unit)]
    )


def head_lines(advice: dict[str, Any], root: Path, unit: str, name: str) -> list[str]:
    """Return the lines about the law and the budget."""
    rate = (
        f"{advice['flops']:.3g} FLOP at {advice['flops_per_second'] / 1e12:.3g} TFLOP/s per {unit} ({advice['speed']})"
    )
    residual = f" (rms residual {format_percent(advice['log_rms'])})"
    fixed = f"; {format_percent(advice['fixed'])} of the time is start-up and overhead per step"
    return [
        f"{root}: {advice['target']}, {advice['formula']} from {advice['runs']} runs{residual}",
        f"{advice['gpu_hours']:,g} {unit}-hours on {name}: {rate}"
        + (fixed if advice["fixed"] > MIN_FIXED_SHARE else ""),
    ]


def training_lines(advice: dict[str, Any], unit: str) -> list[str]:
    """Return the lines about model, data, job and expected loss."""
    end = f" (the {advice['end']})" if advice["end"] else ""
    memory = f"; memory: {advice['memory']}" if advice["memory"] else ""
    shares = " + ".join(f"{advice[part]:.3g} {words}" for part, words in SHARES_OF_LOSS if advice[part])
    gains = {what: format_percent(-gain) for what, gain in advice["twice"].items()}
    return [
        f"  model   {advice['model']}, depth {advice['depth']}, width {advice['width']:,}{end}: "
        f"N = {format_range(advice['parameters'])} body parameters",
        f"  data    D = {format_range(advice['structures'])} structures, {advice['epochs']:g} epochs "
        f"({advice['atoms']:.3g} atoms; {3 * advice['atoms_seen']:.3g} force labels seen)",
        f"  job     {advice['nodes']} node(s), {advice['ranks']} {unit}(s), {advice['hours']:,.3g} hours{memory}",
        f"  {advice['target']:7} {format_range(advice['loss'])} expected = {shares}",
        f"  twice   the hours: {gains['hours']}; the data alone: {gains['data']}; "
        f"the parameters alone: {gains['parameters']}",
    ]


def caveat_lines(advice: dict[str, Any], unit: str) -> list[str]:
    """Return the lines about what the advice does not cover."""
    lines = [
        f"Brackets hold {format_percent(advice['confidence'])} of the resampled fits; "
        "they do not cover that the law may fail beyond the runs."
    ]
    if advice["limited"]:
        lines.append(
            "All existing structures are used, by the smallest model within "
            f"{format_percent(LOSS_TOLERANCE)} of the least loss: these runs do not show what more epochs would bring."
        )
    if advice["log_rms"] > MAX_RESIDUAL:
        missed = format_percent(advice["log_rms"])
        lines.append(f"The law does not even describe the runs it was fitted to: it misses them by {missed}.")
    beyond = advice["beyond"]
    far = f"{beyond['flops']:,.3g} times the compute, {beyond['parameters']:,.3g} times the parameters and "
    far += f"{beyond['structures']:,.3g} times the data of the largest run"
    if not advice["next_hours"]:
        return [*lines, f"This is {far}."]
    first = f"First train what {advice['next_hours']:,.3g} {unit}-hours buy, {MAX_EXTRAPOLATION:g} times the largest"
    return [*lines, f"This is {far}: a direction, not a plan. {first}, and fit again."]


def format_range(interval: dict[str, float | None]) -> str:
    ends = "" if interval["low"] is None else f" [{interval['low']:.3g}, {interval['high']:.3g}]"
    return f"{interval['value']:.3g}{ends}"


def format_percent(share: float) -> str:
    return f"{100 * share:.1f} %"
