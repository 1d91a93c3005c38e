"""The state of every stage, read from the run directory alone: while a driver runs, after it died, or in a copy."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from gnnscale.contract import errors, files
from gnnscale.contract.command_name import command_name
from gnnscale.contract.errors import UserError
from gnnscale.contract.stage_spec import FORMAT
from gnnscale.schema import Record
from workflow.plan.stage import FOLDER_OF_KIND, Stage
from workflow.run_directory import journal
from workflow.run_directory.attempt import read_stage_error


class RecordedStage(Record):
    """Stage of the last `run`, as plan.json records it."""

    id: str
    kind: str
    key: str
    folder: str
    needs: tuple[str, ...]
    core_seconds: float = Field(description="estimate")


class PlanFile(Record):
    """plan.json, the stages of the last `run`, for `status` and `logs`."""

    format: int = FORMAT
    study: str
    site: str
    site_file: str = Field("", description="where the site was given by the path of a file: that path, absolute")
    stages: tuple[RecordedStage, ...]

    @property
    def typed_site(self) -> str:
        """Return what names the site in a command, in any directory."""
        return self.site_file or self.site


class StageStatus(NamedTuple):
    """State and progress of one stage."""

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


def write_plan(root: Path, study: str, site: str, site_file: str, stages: dict[str, Stage]) -> None:
    recorded = tuple(
        RecordedStage(
            id=stage.id,
            kind=stage.kind,
            key=stage.key,
            folder=stage.folder,
            needs=stage.needs,
            core_seconds=stage.core_seconds,
        )
        for stage in stages.values()
    )
    files.write_model(root / "plan.json", PlanFile(study=study, site=site, site_file=site_file, stages=recorded))


def read_plan(root: Path) -> PlanFile:
    check_format(root)
    try:
        return files.read_model(root / "plan.json", PlanFile)
    except errors.BadFile as error:
        if (root / "plan.json").exists():
            raise UserError(str(error), "`run` writes it anew") from None
        others = sorted(path.parent.name for path in root.parent.glob("*/plan.json"))
        hint = (
            f"studies in {root.parent}: {', '.join(others)}; choose one with --study"
            if others
            else f"start one with: {command_name()}"
        )
        raise UserError(f"{root}: no study has been run here", hint) from None


def check_site_file(root: Path, site: str, site_file: str) -> None:
    """Raise if jobs of a site with another file may still be in a queue: this one's scheduler would not know them.

    Jobs of another site in sites/ are no concern of this: whoever follows jobs knows them by the name of their site.
    """
    try:
        recorded = files.read_model(root / "plan.json", PlanFile)
    except errors.BadFile:
        return
    is_same = recorded.site == site and is_same_file(recorded.site_file, site_file)
    if is_same or (recorded.site != site and not recorded.site_file):
        return
    if left := [job for job in journal.unfinished_jobs(root) if job.site == recorded.site]:
        raise UserError(
            f"{root}: {len(left)} job(s) were submitted to site {recorded.typed_site} and may still be there; "
            f"{site_file or f'site {site}'} is another site",
            f"go on with --site {recorded.typed_site}, or end them: "
            f"{command_name()} cancel --site {recorded.typed_site} --root {root}",
        )


def is_same_file(recorded: str, typed: str) -> bool:
    """Tell whether a site's file is the recorded one; one that is gone was moved."""
    if not recorded or not typed:
        return recorded == typed
    return recorded == typed or not Path(recorded).exists() or os.path.samefile(recorded, typed)


def check_format(root: Path) -> None:
    """Raise for a run directory of another version, which is not touched."""
    try:
        found = json.loads((root / "plan.json").read_text()).get("format")
    except (OSError, ValueError, AttributeError):
        return
    if found != FORMAT:
        raise UserError(
            f"{root}: made by another version of gnnscale (format {found}; this one writes {FORMAT})",
            "use that version, or choose another directory with --root",
        )


def read_statuses(root: Path, plan: PlanFile) -> list[StageStatus]:
    messages = failure_messages(journal.read_events(root / "events.jsonl"))
    jobs = {id: job for job in journal.unfinished_jobs(root) for id in job.stages if id not in job.ended}
    return [read_status(root, stage, jobs.get(stage.id), messages.get(stage.id)) for stage in plan.stages]


def failure_messages(events: list[dict[str, Any]]) -> dict[str, str]:
    """Return the message of each stage that failed under the last driver."""
    messages: dict[str, str] = {}
    for event in events:
        if event["event"] == "driver":
            messages = {}
        elif event["event"] == "failed":
            messages[event["stage"]] = event["message"]
    return messages


def read_status(root: Path, stage: RecordedStage, job: journal.RecordedJob | None, failure: str | None) -> StageStatus:
    """Read the state of one stage. `failure`: its message in the journal, for a stage that could not write error.json."""
    folder = root / stage.folder
    status = StageStatus(stage.id, stage.kind, "waiting", stage.folder)
    if result := files.verify(folder, stage.key).result:
        loss = result.values.get("loss")
        loss = float(loss) if isinstance(loss, int | float) else None
        return status._replace(state="done", loss=loss, seconds=result.seconds)
    if job is not None and job.stages[stage.id][0] == stage.folder and not is_withdrawn(root, job, stage.id):
        return read_job_status(stage, folder, job)
    if files.is_locked(folder / "lock"):
        return read_running(stage, folder)
    if error := read_stage_error(folder):
        return status._replace(state="failed", message=error.message)
    return status if failure is None else status._replace(state="failed", message=failure)


def read_job_status(stage: RecordedStage, folder: Path, job: journal.RecordedJob) -> StageStatus:
    """Return the scheduler's last report of the job, and the progress of the stage if it has begun."""
    state, reason, nodes = job.last_status
    attempt = job.stages[stage.id][1]
    has_begun = state == "RUNNING" and (folder / "attempts" / str(attempt) / "stdout").exists()
    status = read_running(stage, folder) if has_begun else StageStatus(stage.id, stage.kind, "queued", stage.folder)
    reason = "" if reason == "None" else reason
    return status._replace(job=job.id or "?", nodes=nodes, attempt=attempt, reason=reason)


def is_withdrawn(root: Path, job: journal.RecordedJob, id: str) -> bool:
    folder, attempt = job.stages[id]
    return (root / folder / "attempts" / str(attempt) / journal.WITHDRAWN_MARKER).exists()


def is_fully_withdrawn(root: Path, job: journal.RecordedJob) -> bool:
    """Tell whether the user has cancelled the job, with all of its stages."""
    return all(is_withdrawn(root, job, id) for id in job.stages.keys() - job.ended)


def read_running(stage: RecordedStage, folder: Path) -> StageStatus:
    """Read the progress of a running stage, if it has written any yet."""
    status = StageStatus(stage.id, stage.kind, "running", stage.folder)
    try:
        progress = json.loads((folder / "progress.json").read_text())
    except (OSError, ValueError):
        return status
    done, total = progress["done"], progress["total"]
    advanced = done - progress["began_at"]
    eta = None
    if advanced > 0:
        seconds_each = (progress["time"] - progress["began"]) / advanced
        eta = max(0.0, (total - done) * seconds_each - (time.time() - progress["time"]))
    return status._replace(done=done, total=total, loss=progress.get("loss"), eta=eta)


def count_done(statuses: list[StageStatus]) -> dict[str, tuple[int, int]]:
    """Count (done, all) stages of each kind, in the order of the work."""
    return {
        kind: (sum(status.state == "done" for status in of_kind), len(of_kind))
        for kind in FOLDER_OF_KIND
        if (of_kind := [status for status in statuses if status.kind == kind])
    }
