"""TODO: say what a reader finds here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from gnnscale.contract import files
from gnnscale.contract.stage_spec import StageSpec
from workflow.config.site import SiteConfig
from workflow.plan.stage import FOLDERS, Planned, Stage


def plan(all_stages: dict[str, Stage], root: Path, deep: bool = False) -> dict[str, Planned]:
    """For every stage whether it is done, and if not, why."""
    planned: dict[str, Planned] = {}
    for stage in all_stages.values():
        planned[stage.id] = judge(stage, root, planned, deep)
    return planned


def judge(stage: Stage, root: Path, upstream: dict[str, Planned], deep: bool = False) -> Planned:
    folder = root / stage.folder
    verdict = files.verify(folder, stage.key, deep)
    if not verdict.done:
        if stage.levers is not None and stage.levers.refusal:
            return Planned(stage, "refused", stage.levers.refusal, None)
        resumes = stage.kind == "train" and any((folder / "checkpoints").glob("step-*"))
        reason = verdict.reason
        if reason == "not run yet":
            reason = cause(stage, root) or reason
        return Planned(stage, "resume" if resumes else "run", reason, None)
    for need in stage.needs:
        before, now = verdict.result.inputs.get(need), upstream[need].result
        if now is None:
            return Planned(stage, "check", f"{need} is made again; this runs if that comes out different", None)
        if now.digest != before:
            return Planned(stage, "run", f"{need} has been made again and is different now", None)
    return Planned(stage, "done", "", verdict.result)


def cause(stage: Stage, root: Path) -> str | None:
    """Why a stage that has been run before is another one now, told against its newest earlier form."""
    earlier = [
        path
        for path in (root / FOLDERS[stage.kind]).glob(f"{stage.name}-????????/spec.json")
        if path.parent.name != Path(stage.folder).name
    ]
    for path in sorted(earlier, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            return difference(files.read_model(path, StageSpec), stage)
        except files.BadFile:
            continue
    return None


def difference(old: StageSpec, stage: Stage) -> str:
    """In words: settings first, then code, then what it needs."""
    parts = []
    before, after = flat(old.settings.model_dump(mode="json")), flat(stage.settings.model_dump(mode="json"))
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            parts.append(f"{path}: {before.get(path)} -> {after.get(path)}")
    changed = sorted(f for f in old.code.keys() | stage.code.keys() if old.code.get(f) != stage.code.get(f))
    if changed:
        parts.append("code changed: " + ", ".join(changed))
    changed = sorted(f for f in old.raw.keys() | stage.raw.keys() if old.raw.get(f) != stage.raw.get(f))
    if changed:
        parts.append("input changed: " + count(changed))
    if old.image != stage.image:
        parts.append(f"image: {(old.image or 'none')[:12]} -> {(stage.image or 'none')[:12]}")
    added, gone = sorted(set(stage.needs) - set(old.needs)), sorted(set(old.needs) - set(stage.needs))
    parts += [f"needs {count(added)} more"] if added else []
    parts += [f"needs {count(gone)} no more"] if gone else []
    return "; ".join(parts) or "what it needs has changed"


def count(ids: list[str]) -> str:
    return ids[0] if len(ids) == 1 else f"{len(ids)} ({ids[0]}, ...)"


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix.rstrip("."): data}
    return {name: value for key, inner in data.items() for name, value in flat(inner, f"{prefix}{key}.").items()}


def wall_seconds(planned: dict[str, Planned], site: SiteConfig) -> float:
    """Estimate for what is left: kinds follow each other, and within a kind `parallel_stages` run side by side."""
    left: dict[str, list[float]] = {}
    for each in planned.values():
        if each.state != "done":
            left.setdefault(each.stage.kind, []).append(each.stage.core_seconds)
    ratio = pace(planned)
    return sum(ratio.get(kind, 1.0) * max(sum(all) / site.parallel_stages, *all) for kind, all in left.items())


def outputs(planned: dict[str, Planned], root: Path) -> list[Path]:
    """Of all that is done. Not result.json, which every plan reads: nobody touches these."""
    done = [each for each in planned.values() if each.result is not None]
    return [root / each.stage.folder / name for each in done for name in each.result.outputs]


def pace(planned: dict[str, Planned]) -> dict[str, float]:
    """Measured over estimated seconds, per kind, from what is done: this machine is as fast as it is."""
    took, estimated = Counter(), Counter()
    for each in planned.values():
        if each.result is not None:
            took[each.stage.kind] += each.result.seconds
            estimated[each.stage.kind] += each.stage.core_seconds
    return {kind: took[kind] / estimated[kind] for kind in took if estimated[kind]}
