"""State shared by everything that handles one run's jobs: directory, journal, output, stop request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from workflow.config.site import SiteConfig
from workflow.plan.stage import Stage
from workflow.run_directory.attempt import INTERRUPTED, AttemptOutcome, ExitRecord, StageUnfinished, read_exit_record
from workflow.run_directory.journal import Journal, RecordedJob
from workflow.scheduler.interface import JobStatus
from workflow.scheduler.registry import SCHEDULERS

FILE_POLL_SECONDS = 0.5
CLOSED_MARKER = "closed"  # in an attempt's directory: a job that begins it now ends at once


class RunContext:
    """State of one run directory: where it is, at which site, and where events are recorded and shown."""

    def __init__(self, root: Path, site: SiteConfig, site_name: str, log: Journal, show: Callable[[str, str], None]):
        self.root, self.site, self.site_name, self.log, self.show = root, site, site_name, log, show
        self.settings = site.batch_scheduler
        self.scheduler = SCHEDULERS[self.settings.kind]
        self.stopping = threading.Event()
        self.submitting = threading.Lock()  # one command at a time of those that must not overlap
        self.is_unreachable = False  # the scheduler, at the last query

    def attempt_folder(self, job: RecordedJob, id: str) -> Path:
        folder, number = job.stages[id]
        return self.root / folder / "attempts" / str(number)

    def read_exit(self, job: RecordedJob, id: str) -> ExitRecord | None:
        return read_exit_record(self.attempt_folder(job, id))

    def close_attempts(self, job: RecordedJob, *ids: str) -> None:
        """Mark attempts as closed, all of the job by default: if the job begins one of them later, it ends at once."""
        for id in ids or job.stages:
            try:
                self.attempt_folder(job, id).mkdir(parents=True, exist_ok=True)
                (self.attempt_folder(job, id) / CLOSED_MARKER).touch()
            except OSError:
                pass  # a full disk; the lock of the stage keeps a late job out too

    def note_end(self, id: str, job: RecordedJob, outcome: AttemptOutcome) -> None:
        folder, number = job.stages[id]
        self.log.note(
            "ended",
            id,
            name=job.name,
            job=job.id,
            kind=outcome.kind,
            message=outcome.message,
            folder=folder,
            attempt=number,
            progress=saved_progress(self.root / folder),
        )

    def report_status(self, stages: list[Stage], status: JobStatus) -> None:
        """Show the state of a job of these stages, and record it in the journal."""
        for stage in stages:
            self.show(stage.id, "running" if status.state == "RUNNING" else "queued")
        self.log.note(
            "job", stages[0].id, name=status.name, state=status.state, reason=status.reason, nodes=status.nodes
        )

    def scheduler_unreachable(self, message: str) -> None:
        """Record that the scheduler stopped answering; an empty message records that it is back."""
        if bool(message) != self.is_unreachable:
            self.is_unreachable = bool(message)
            self.log.note("unreachable" if message else "reachable", message=message)
            self.show("", message)

    def raise_if_stopping(self) -> None:
        if self.stopping.is_set():
            raise StageUnfinished(INTERRUPTED)

    def sleep(self, seconds: float) -> None:
        self.stopping.wait(seconds)
        self.raise_if_stopping()


def saved_progress(folder: Path) -> float:
    """Return the progress that is saved on disk: the last step of a training, or the number of shards of a conversion."""
    steps = (int(p.name[5:]) for p in (folder / "checkpoints").glob("step-*") if p.name[5:].isdigit())
    return max(steps, default=sum(1 for _ in (folder / "shard_notes").glob("*.json")))
