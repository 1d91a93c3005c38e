"""Decides which stages are done, says why others run, and estimates how long the rest takes."""

from __future__ import annotations

from pathlib import Path

from gnnscale.contract import errors, files
from gnnscale.contract.stage_spec import StageSpec
from workflow.config.site import SiteConfig
from workflow.config.sweeps import flatten
from workflow.plan.stage import FOLDER_OF_KIND, PlannedStage, Stage


def judge_stages(all_stages: dict[str, Stage], root: Path, deep: bool = False) -> dict[str, PlannedStage]:
    """Return each stage with its state, and if it is not done, with the reason."""
    planned: dict[str, PlannedStage] = {}
    for stage in all_stages.values():
        planned[stage.id] = judge_stage(stage, root, planned, deep)
    return planned


def judge_stage(stage: Stage, root: Path, upstream: dict[str, PlannedStage], deep: bool = False) -> PlannedStage:
    verdict = files.verify(root / stage.folder, stage.key, deep)
    if verdict.result is None:
        return judge_without_result(stage, root, verdict.reason)
    for need in stage.needs:
        used, present = verdict.result.inputs.get(need), upstream[need].result
        if present is None:
            return PlannedStage(stage, "check", f"{need} runs again; this runs if the new result differs", None)
        if present.digest != used:
            return PlannedStage(stage, "run", f"{need} was made again and its result has changed", None)
    return PlannedStage(stage, "done", "", verdict.result)


def judge_without_result(stage: Stage, root: Path, reason: str) -> PlannedStage:
    if stage.refusal:
        return PlannedStage(stage, "refused", stage.refusal, None)
    if reason == "not run yet":
        reason = reason_to_rerun(stage, root) or reason
    resumes = stage.kind == "train" and any((root / stage.folder / "checkpoints").glob("step-*"))
    return PlannedStage(stage, "resume" if resumes else "run", reason, None)


def reason_to_rerun(stage: Stage, root: Path) -> str | None:
    """Return how a stage that was run before differs from its newest earlier form; None if there is none."""
    earlier = [
        path
        for path in (root / FOLDER_OF_KIND[stage.kind]).glob(f"{stage.name}-????????/spec.json")
        if path.parent.name != Path(stage.folder).name
    ]
    for path in sorted(earlier, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            return describe_difference(files.read_model(path, StageSpec), stage)
        except errors.BadFile:
            continue
    return None


def describe_difference(old: StageSpec, stage: Stage) -> str:
    """Describe what has changed: settings first, then code, raw files, the image and needed stages."""
    parts = []
    before = dict(flatten(old.settings.model_dump(mode="json")))
    after = dict(flatten(stage.settings.model_dump(mode="json")))
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            parts.append(f"{path}: {before.get(path)} -> {after.get(path)}")
    changed = sorted(f for f in old.code.keys() | stage.code.keys() if old.code.get(f) != stage.code.get(f))
    if changed:
        parts.append("code changed: " + ", ".join(changed))
    changed = sorted(f for f in old.raw.keys() | stage.raw.keys() if old.raw.get(f) != stage.raw.get(f))
    if changed:
        parts.append("input changed: " + summarise_names(changed))
    if old.image != stage.image:
        parts.append(f"image: {(old.image or 'none')[:12]} -> {(stage.image or 'none')[:12]}")
    added, gone = sorted(set(stage.needs) - set(old.needs)), sorted(set(old.needs) - set(stage.needs))
    parts += [f"needs {summarise_names(added)} more"] if added else []
    parts += [f"needs {summarise_names(gone)} no more"] if gone else []
    return "; ".join(parts) or "a stage that it needs has changed"


def summarise_names(ids: list[str]) -> str:
    """Return the only name, or the number of names and the first."""
    return ids[0] if len(ids) == 1 else f"{len(ids)} ({ids[0]}, ...)"


def remaining_seconds(planned: dict[str, PlannedStage], site: SiteConfig) -> float:
    """Estimate the time until all is done: kinds run one after another, `parallel_stages` of a kind at a time."""
    left: dict[str, list[float]] = {}
    for each in planned.values():
        if each.state != "done":
            left.setdefault(each.stage.kind, []).append(each.stage.core_seconds)
    ratio = measured_over_estimated(planned)
    return sum(
        ratio.get(kind, 1.0) * max(sum(seconds) / site.parallel_stages, *seconds) for kind, seconds in left.items()
    )


def finished_outputs(planned: dict[str, PlannedStage], root: Path) -> list[Path]:
    """List the outputs of done stages, without result.json, which every plan reads and so keeps from being deleted."""
    return [
        root / each.stage.folder / name
        for each in planned.values()
        if each.result is not None
        for name in each.result.outputs
    ]


def measured_over_estimated(planned: dict[str, PlannedStage]) -> dict[str, float]:
    """Return measured over estimated seconds of each kind, from the stages that are done on this machine."""
    measured: dict[str, float] = {}
    estimated: dict[str, float] = {}
    for each in planned.values():
        if each.result is not None:
            kind = each.stage.kind
            measured[kind] = measured.get(kind, 0.0) + each.result.seconds
            estimated[kind] = estimated.get(kind, 0.0) + each.stage.core_seconds
    return {kind: measured[kind] / estimated[kind] for kind in measured if estimated[kind]}
