"""How far a study is, read from its directory alone: works while a driver runs, after it died, or on a copy."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from gnnscale.contract import files
from gnnscale.contract.errors import Problem
from gnnscale.contract.results import StageError
from gnnscale.contract.stage_spec import FORMAT
from gnnscale.schema import Spec
from workflow.plan.stage import FOLDERS, Stage
from workflow.run_directory import journal


class PlannedStage(Spec):
    id: str
    kind: str
    key: str
    folder: str
    needs: tuple[str, ...]
    core_seconds: float = Field(description="estimate")


class PlanFile(Spec):
    """plan.json: the stages of the last `run`, for `status` and `logs`."""

    format: int = FORMAT
    study: str
    site: str
    stages: tuple[PlannedStage, ...]


class Row(NamedTuple):
    """One stage, as it is now."""

    id: str
    kind: str
    state: str  # done, running, queued, failed, waiting
    folder: str
    done: float | None = None
    total: float | None = None
    loss: float | None = None
    eta: float | None = None  # seconds
    seconds: float | None = None
    message: str = ""
    job: str = ""  # its id, where the stage is in a batch job
    nodes: str = ""
    attempt: int | None = None
    reason: str = ""  # why it waits


def write_plan(root: Path, study: str, site: str, stages: dict[str, Stage]) -> None:
    kept = tuple(
        PlannedStage(**{name: getattr(s, name) for name in PlannedStage.model_fields}) for s in stages.values()
    )
    files.write_model(root / "plan.json", PlanFile(study=study, site=site, stages=kept))


def read_plan(root: Path) -> PlanFile:
    check_format(root)
    try:
        return files.read_model(root / "plan.json", PlanFile)
    except files.BadFile as error:
        if (root / "plan.json").exists():
            raise Problem(str(error), "`run` writes it anew") from None
        known = sorted(p.parent.name for p in root.parent.glob("*/plan.json"))
        there = f"there is: {', '.join(known)} (--study)" if known else "start one with: python workflow/run.py"
        raise Problem(f"{root}: no study has been run here; {there}") from None


def check_format(root: Path) -> None:
    """A run directory of another version is not touched."""
    try:
        found = json.loads((root / "plan.json").read_text()).get("format")
    except (OSError, ValueError, AttributeError):
        return
    if found != FORMAT:
        raise Problem(
            f"{root}: made by another version of gnnscale (format {found}; this one writes {FORMAT})",
            "use that version, or choose another directory with --root",
        )


def rows(root: Path, plan: PlanFile) -> list[Row]:
    events = journal.read(root / "events.jsonl")
    jobs = {id: job for job in journal.unfinished(root) for id in job.stages if id not in job.ended}
    failed = failures(events)
    return [row(root, stage, jobs.get(stage.id), failed.get(stage.id, "")) for stage in plan.stages]


def failures(events: list[dict]) -> dict[str, str]:
    """What failed for the last driver, by its own words."""
    told: dict[str, str] = {}
    for event in events:
        if event["event"] == "driver":
            told = {}
        elif event["event"] == "failed":
            told[event["stage"]] = event["message"]
    return told


def row(root: Path, stage: PlannedStage, job: journal.Known | None, failure: str) -> Row:
    folder = root / stage.folder
    verdict = files.verify(folder, stage.key)
    if verdict.done:
        loss = verdict.result.values.get("loss")
        return Row(stage.id, stage.kind, "done", stage.folder, loss=loss, seconds=verdict.result.seconds)
    if job is not None and job.stages[stage.id][0] == stage.folder and not withdrawn(root, job, stage.id):
        state, reason, nodes = job.seen
        begun = state == "RUNNING" and (folder / "attempts" / str(job.stages[stage.id][1]) / "stdout").exists()
        found = running(stage, folder) if begun else Row(stage.id, stage.kind, "queued", stage.folder)
        reason = "" if reason == "None" else reason
        return found._replace(job=job.id or "?", nodes=nodes, attempt=job.stages[stage.id][1], reason=reason)
    if files.held(folder / "lock"):
        return running(stage, folder)
    try:
        error = files.read_model(folder / "error.json", StageError)
        return Row(stage.id, stage.kind, "failed", stage.folder, message=error.message)
    except files.BadFile:
        return Row(stage.id, stage.kind, "failed" if failure else "waiting", stage.folder, message=failure)


def withdrawn(root: Path, job: journal.Known, id: str) -> bool:
    folder, attempt = job.stages[id]
    return (root / folder / "attempts" / str(attempt) / journal.WITHDRAWN).exists()


def all_withdrawn(root: Path, job: journal.Known) -> bool:
    """Whether its user has cancelled the job."""
    return all(withdrawn(root, job, id) for id in job.stages.keys() - job.ended)


def running(stage: PlannedStage, folder: Path) -> Row:
    """With what the stage says of its progress, if it has said anything yet."""
    try:
        said = json.loads((folder / "progress.json").read_text())
    except (OSError, ValueError):
        return Row(stage.id, stage.kind, "running", stage.folder)
    advanced = said["done"] - said["began_at"]
    eta = None
    if advanced > 0:
        eta = (said["total"] - said["done"]) * (said["time"] - said["began"]) / advanced - (time.time() - said["time"])
    return Row(
        stage.id,
        stage.kind,
        "running",
        stage.folder,
        said["done"],
        said["total"],
        said.get("loss"),
        max(0.0, eta) if eta is not None else None,
    )


def counts(found: list[Row]) -> dict[str, tuple[int, int]]:
    """Per kind: (done, all), in the order of the work."""
    return {
        kind: (sum(r.state == "done" for r in mine), len(mine))
        for kind in FOLDERS
        if (mine := [r for r in found if r.kind == kind])
    }
