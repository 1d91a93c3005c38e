"""Follow a job to the end of one of its stages, and judge that end by its files and by the scheduler's answers."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.command_name import command_name
from workflow.jobs import outcome
from workflow.jobs.run_context import RunContext
from workflow.plan.stage import Stage
from workflow.run_directory.attempt import DISK_FULL, AttemptOutcome, ExitRecord, read_stage_error, read_tail
from workflow.run_directory.journal import WITHDRAWN_MARKER, RecordedJob
from workflow.scheduler.interface import JobStatus, SchedulerUnreachable, Snapshot
from workflow.scheduler.poller import SchedulerPoller

READ_SECONDS = 2.0  # at most between two reads of exit.json: every stage reads one, on a shared file system
STACK_DUMP_SECONDS = 8.0  # in which a job sees that it is asked, and the ranks of its training print where they are
STACK_REQUEST = "SIGUSR2"  # in an attempt's directory; a signal through PBS would end the shell around the job
STACK_LINES, STACK_BYTES = 2**13, 2**18  # that are read of what they print
FINAL_STATES = ("CANCELLED", "NODE_FAIL", "PREEMPTED", "TIMEOUT", "OUT_OF_MEMORY")  # after which no file is awaited


class JobFollower:
    """Follower of one stage in one job, until the stage has ended."""

    def __init__(
        self, context: RunContext, poller: SchedulerPoller, stage: Stage, job: RecordedJob, preemptible: bool = False
    ):
        assert job.id is not None, f"{job.name} was not submitted"
        self.context, self.poller, self.stage, self.job, self.preemptible = context, poller, stage, job, preemptible
        self.job_id = job.id
        self.folder, self.attempt = context.root / stage.folder, context.attempt_folder(job, stage.id)
        # Other stages may be silent for long.
        self.silence = SilenceTimer(self.folder, self.attempt) if stage.kind == "train" else None
        self.status: JobStatus | None = None
        self.forced: AttemptOutcome | None = None  # outcome of a job that this follower ends
        self.stacks_requested = 0.0  # when its ranks were asked to print where they are

    @property
    def is_job_over(self) -> bool:
        """Tell whether the scheduler, by its last answer, no longer has the job."""
        return self.status is None or not self.status.is_active

    def wait_for_end(self) -> AttemptOutcome:
        moment, gone, since, lingering = time.time(), 0, 0.0, 0
        self.poller.follow(self.job_id)
        hurry_at, patience = time.monotonic(), 1.0
        read_seconds = min(READ_SECONDS, self.context.settings.poll_seconds)
        while True:
            self.context.raise_if_stopping()
            exit = self.context.read_exit(self.job, self.stage.id)
            if exit and exit.code == 0 and not self.reason_invalid():
                return AttemptOutcome("done", "")
            if exit and time.monotonic() >= hurry_at:  # the job is about to end, so the scheduler is polled sooner
                self.poller.hurry()
                hurry_at, patience = time.monotonic() + patience, 2 * patience
            snapshot = self.poller.wait_for_snapshot(moment, read_seconds)
            if snapshot is None:
                continue
            moment = snapshot.began
            if self.note_status(snapshot.jobs.get(self.job_id)):
                gone, lingering = 0, lingering + bool(exit and exit.code)
                if lingering < 2 or len(self.job.stages) == 1:
                    continue
                return self.judge(exit)  # its job goes on with other stages, so the scheduler says no more about it
            if self.status is None and not exit and not self.is_denied(snapshot):
                continue  # an answer without the job proves nothing
            gone, since = gone + 1, since if gone else time.monotonic()
            if self.is_settled(exit, gone, time.monotonic() - since):
                return self.forced_outcome(self.forced) if self.forced else self.judge(exit)

    def note_status(self, status: JobStatus | None) -> bool:
        """Take note of the scheduler's answer; return whether it still has the job."""
        before, self.status = self.status, status
        if status is None or status.name != self.job.name:  # an id of another cluster, or given again long after
            self.status = None
            return False
        if not status.is_active:
            return False
        if status != before:
            self.context.report_status([self.stage], status)
        if self.silence is not None and status.state != "RUNNING":  # it waits, or was suspended
            self.silence.restart()
        self.end_if_hopeless(status, before)
        return True

    def is_denied(self, snapshot: Snapshot) -> bool:
        """Tell whether the scheduler says that it has no such job, or that its number belongs to another one."""
        return self.job_id in snapshot.unknown or self.job_id in snapshot.jobs

    def end_if_hopeless(self, status: JobStatus, before: JobStatus | None) -> None:
        """Cancel a job that would wait for ever, or whose training hangs."""
        if status.is_hopeless and before is not None and before.is_hopeless:  # not just while the scheduler looks
            self.forced = outcome.hopeless_outcome(self.job_id, status.reason)
        elif not self.forced and status.state == "RUNNING" and self.is_stalled():
            assert self.silence is not None
            message = f"no sign of life for {self.silence.seconds():.0f} s; its job was cancelled"
            self.forced, self.stacks_requested = AttemptOutcome("stalled", message), time.monotonic()
            self.request_stacks()
        if self.forced and time.monotonic() - self.stacks_requested >= self.stack_seconds:
            self.cancel_job()

    def is_stalled(self) -> bool:
        return self.silence is not None and self.silence.seconds() > self.context.settings.stall_seconds

    @property
    def stack_seconds(self) -> float:
        """Time from the request for stacks to the end of the job; both files may appear late on the other side."""
        return STACK_DUMP_SECONDS + 2 * self.context.settings.late_seconds

    def request_stacks(self) -> None:
        """Ask the ranks, by a file that their job looks for, to print where they are."""
        with contextlib.suppress(OSError):  # a full disk: the job is ended without them
            (self.attempt / STACK_REQUEST).touch()

    def cancel_job(self) -> None:
        with contextlib.suppress(SchedulerUnreachable):  # repeated after the next answer; a late start finds it closed
            self.context.scheduler.cancel([self.job_id], self.context.settings.command_timeout)

    def is_settled(self, exit: ExitRecord | None, gone: int, seconds: float) -> bool:
        """Tell whether the job is over: the scheduler says so, and its files have had time to appear here."""
        if exit is not None and exit.code != 0:
            return self.status is not None or gone >= 2
        if self.status is not None and self.status.state in FINAL_STATES:
            return True
        return gone >= 2 and seconds >= self.context.settings.late_seconds

    def forced_outcome(self, forced: AttemptOutcome) -> AttemptOutcome:
        if not self.stacks_requested:
            return forced
        return outcome.with_stacks(forced, "\n".join(read_tail(self.attempt / "stderr", STACK_LINES, STACK_BYTES)))

    def judge(self, exit: ExitRecord | None) -> AttemptOutcome:
        invalid = self.reason_invalid()
        if invalid and (self.attempt / WITHDRAWN_MARKER).exists():
            return AttemptOutcome(
                "withdrawn", f"cancelled with `{command_name()} cancel`", "type the same command again to go on"
            )
        if invalid and exit is not None and exit.code == 0 and files.disk_is_full(self.folder):
            return DISK_FULL
        printed = "\n".join(line for name in ("job.out", "stdout", "stderr") for line in read_tail(self.attempt / name))
        error = read_stage_error(self.folder)
        return outcome.classify(exit, self.status, error, printed, invalid, self.preemptible)

    def reason_invalid(self) -> str:
        verdict = files.verify(self.folder, self.stage.key)
        return "" if verdict.done else verdict.reason


class SilenceTimer:
    """Timer of how long a training gave no sign of life, by the driver's clock: those of other machines may differ."""

    def __init__(self, folder: Path, attempt: Path):
        self.signs = [folder / name for name in ("progress.json", "metrics.jsonl", "checkpoints")]
        self.signs += [attempt / name for name in ("stdout", "stderr")]
        self.last: tuple[int, ...] = ()
        self.since = time.monotonic()

    def restart(self) -> None:
        self.since = time.monotonic()

    def seconds(self) -> float:
        now = tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in self.signs)
        if now != self.last:
            self.last, self.since = now, time.monotonic()
        return time.monotonic() - self.since
