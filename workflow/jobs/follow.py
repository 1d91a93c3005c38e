"""A job followed to the end of one of its stages, and that end judged: by its files and by what the scheduler says."""

from __future__ import annotations

import time
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.results import StageError
from workflow.jobs import outcome
from workflow.jobs.outcome import Exit, Outcome
from workflow.jobs.run_context import DISK_FULL, Office
from workflow.plan.stage import Stage
from workflow.run_directory.attempt import last_lines
from workflow.run_directory.journal import WITHDRAWN, Known
from workflow.scheduler import query
from workflow.scheduler.poller import Watch
from workflow.scheduler.query import Seen

LOOK = 2.0  # s at most between two looks for how it ended: all stages look, at a file system that many share
STACKS = 5.0  # s in which the ranks of a training that hangs tell where they are
GONE = ("CANCELLED", "NODE_FAIL", "PREEMPTED", "TIMEOUT", "OUT_OF_MEMORY")  # ends after which no file is waited for


class Following:
    """One stage in one job, until it has ended."""

    def __init__(self, office: Office, watch: Watch, stage: Stage, job: Known, preemptible: bool = False):
        self.office, self.watch, self.stage, self.job, self.preemptible = office, watch, stage, job, preemptible
        self.folder, self.attempt = office.root / stage.folder, office.attempt(job, stage.id)
        self.quiet = Quiet(
            self.folder, self.attempt, endless=stage.kind != "train"
        )  # others may compute long in silence
        self.seen: Seen | None = None
        self.sentence: Outcome | None = None  # how it will have ended, once we have ended it
        self.asked = 0.0  # when its ranks were asked where they are

    @property
    def is_over(self) -> bool:
        """True where the scheduler, as it said last, does not have the whole job any more."""
        return self.seen is None or not self.seen.active

    def outcome(self) -> Outcome:
        moment, missing, since, lingering = time.time(), 0, 0.0, 0
        self.watch.follow(self.job.id)
        hurry, patience = time.monotonic(), 1.0
        look = min(LOOK, self.office.site.scheduler.poll_seconds)
        while True:
            self.office.check()
            exit = self.office.exit_of(self.job, self.stage.id)
            if exit and exit.code == 0 and not self.invalid():
                return Outcome("done", "")
            if exit and time.monotonic() >= hurry:  # the job is about to end, so it is asked about sooner
                self.watch.hurry()
                hurry, patience = time.monotonic() + patience, 2 * patience
            snapshot = self.watch.after(moment, look)
            if snapshot is None:
                continue
            moment = snapshot.began
            if self.active(snapshot.jobs.get(self.job.id)):
                missing, lingering = 0, lingering + bool(exit and exit.code)
                if lingering < 2 or len(self.job.stages) == 1:
                    continue
                return self.judge(exit)  # others of its job go on; this one has left, and no scheduler says more of it
            missing, since = missing + 1, since if missing else time.monotonic()
            if self.settled(exit, missing, time.monotonic() - since):
                return self.sentenced() if self.sentence else self.judge(exit)

    def active(self, seen: Seen | None) -> bool:
        """Whether the scheduler still has it. What can come to no good is ended."""
        before, self.seen = self.seen, seen
        if seen is None or seen.name != self.job.name:  # or the id of somebody else's, on another cluster or long after
            self.seen = None
            return False
        if not seen.active:
            return False
        if seen != before:
            self.office.tell([self.stage], seen)
        stalled = seen.state == "RUNNING" and self.quiet.seconds() > self.office.site.scheduler.stall_seconds
        if seen.hopeless and before is not None and before.hopeless:  # and not just while the scheduler is looking
            said = f"job {self.job.id} would wait for ever: {seen.reason}"
            hint = "ask for less, or for another queue: look at `queues` of the site's file"
            self.sentence = Outcome("configuration", said, hint)
        elif stalled and not self.sentence:
            said = f"no sign of life for {self.quiet.seconds():.0f} s; its job was cancelled"
            self.sentence, self.asked = Outcome("stalled", said), time.monotonic()
            self.command(self.office.scheduler.signal, self.job.id, "USR2")
        if self.sentence and time.monotonic() - self.asked >= STACKS:
            self.command(self.office.scheduler.cancel, [self.job.id])
        return True

    def command(self, verb: object, *words: object) -> None:
        try:
            verb(*words, self.office.site.scheduler.command_timeout)
        except query.Unreachable:
            pass  # it is asked about again, and closed to any later beginning

    def settled(self, exit: Exit | None, missing: int, seconds: float) -> bool:
        """A job is over when the scheduler says so and its files had the time to be seen here."""
        if exit is not None and exit.code != 0:
            return self.seen is not None or missing >= 2
        if self.seen is not None and self.seen.state in GONE:
            return True
        return missing >= 2 and seconds >= self.office.site.scheduler.late_seconds

    def sentenced(self) -> Outcome:
        return outcome.hanging(self.sentence, end_of(self.attempt / "stderr")) if self.asked else self.sentence

    def judge(self, exit: Exit | None) -> Outcome:
        valid = self.invalid()
        if valid and (self.attempt / WITHDRAWN).exists():
            return Outcome("withdrawn", "cancelled with `run.py cancel`", "type the same command again to go on")
        try:
            error = files.read_model(self.folder / "error.json", StageError)
        except files.BadFile:
            error = None
        words = "\n".join(line for name in ("job.out", "stdout", "stderr") for line in last_lines(self.attempt / name))
        if valid and exit is not None and exit.code == 0 and files.disk_is_full(self.folder):
            return DISK_FULL
        return outcome.classify(exit, self.seen, error, words, valid, self.preemptible)

    def invalid(self) -> str:
        verdict = files.verify(self.folder, self.stage.key)
        return "" if verdict.done else verdict.reason


class Quiet:
    """For how long a stage has given no sign of life, by the driver's clock: those of other machines may differ."""

    def __init__(self, folder: Path, attempt: Path, endless: bool):
        self.endless = endless
        self.signs = [folder / name for name in ("progress.json", "metrics.jsonl", "checkpoints")]
        self.signs += [attempt / name for name in ("stdout", "stderr")]
        self.last, self.since = None, time.monotonic()

    def seconds(self) -> float:
        if self.endless:
            return 0.0
        now = tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in self.signs)
        if now != self.last:
            self.last, self.since = now, time.monotonic()
        return time.monotonic() - self.since


def end_of(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 2**18))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
