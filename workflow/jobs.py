"""Stages as batch jobs: submitted once, followed, adopted by the next driver, and judged when they have ended.

A job is written down before it is submitted and after, so whatever kills the driver, the next one knows which jobs there
may be, finds them by their names, and submits none twice. Jobs outlive the driver; nothing here stops them.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from gnnscale import files
from gnnscale.specs import ShardCard, StageError, StageResult, StageSpec
from workflow import launch, levers, outcome, provider, scheduler
from workflow.journal import WITHDRAWN, Journal, Known, name_of, read, unfinished
from workflow.outcome import Exit, Outcome
from workflow.plan import Stage
from workflow.processes import Failure, Interrupted, StageFailed, disk_failure, last_lines, prepare
from workflow.queueing import Request
from workflow.scheduler import Seen
from workflow.siteconfig import SiteConfig
from workflow.watch import Watch
from workflow.yamlfile import Problem

GATHERING = 5.0  # s in which the stages of one job come together
NAP = 0.5  # s between two looks at files
CLOSED = "closed"  # in an attempt's directory: should its job begin in spite of all, it ends at once


DISK_FULL = Outcome("disk-full", "no space left on device", "free some space, then type the same command again")


class Gathering:
    """The stages that share a request, on their way into one job."""

    def __init__(self):
        self.waiting: list[Stage] = []
        self.job: Known | None = None
        self.error: BaseException | None = None


class Jobs:
    """`run` for a stage on a thread of its own, as Processes has it."""

    def __init__(self, root: Path, site: SiteConfig, site_name: str, stages: dict[str, Stage],
                 requests: dict[str, Request], log: Journal, say: Callable[..., None]):  # fmt: skip
        self.root, self.site, self.site_name, self.stages, self.requests = root, site, site_name, stages, requests
        self.log, self.say = log, say
        self.stopping = threading.Event()
        self.asked = scheduler.KINDS[site.scheduler.kind]
        self.watch = Watch(self.asked, site.scheduler.poll_seconds, site.scheduler.command_timeout, self.away)
        self.slots = threading.Semaphore(site.scheduler.max_jobs)
        self.submitting, self.guard = threading.Lock(), threading.Lock()  # of the scheduler's commands; of what follows
        self.gatherings: dict[tuple[str, ...], Gathering] = {}
        self.avoid: tuple[str, ...] = ()
        self.open: dict[str, set[str]] = {}  # name of a job -> its stages that are still followed
        self.out_of_reach = False
        self.holding: set[str] = set()  # names of jobs that count
        self.left = unfinished(root)
        self.shrunk = Counter(e["folder"] for e in read(log.path) if e["event"] == "ended" and e["kind"] == "memory")
        self.check_site()

    def check_site(self) -> None:
        for job in self.left:
            running = [id for id in job.stages if id not in job.ended and self.exit_of(job, id) is None]
            if job.site != self.site_name and job.id and running:
                raise Problem(
                    f"{self.root}: job {job.id} ({running[0]}) was submitted to site {job.site} and may still be there",
                    f"go on with --site {job.site}, or end it with: python workflow/run.py cancel --site {job.site}",
                    f"if this is a copy of what ran there: remove {self.log.path}",
                )

    # ------------------------------------------------------------------------------------------------ a stage
    def run(self, stage: Stage) -> StageResult:
        """Until the stage is done, in as many jobs as it takes, or until there is no sense in another one."""
        folder, budget = self.root / stage.folder, outcome.Budget(progress(self.root / stage.folder))
        adopted = job = self.adopt(stage)
        while True:
            try:
                job = job or self.submit(stage)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise StageFailed(disk_failure(stage, error)) from None
                ended = DISK_FULL
            else:
                ended = self.follow(stage, job)
                self.end(stage, job, ended)
            if ended.kind == "done":
                return files.verify(folder, stage.key).result
            if ended.kind == "withdrawn" and job is adopted:
                job = None  # cancelled before this driver began, so by now it is wanted again
                continue
            action, told = budget.decide(ended, progress(folder))
            if action == "fail":
                raise StageFailed(Failure(stage.id, told.kind, told.message, told.hint, self.tail(stage, job, told)))
            if action == "avoid" and self.site.scheduler.exclude_nodes:
                self.avoid = tuple(dict.fromkeys((*self.avoid, *told.hosts)))[-16:]
            if action == "shrink":
                self.shrunk[stage.folder] += 1
            if action == "space":
                self.wait_for_space(stage)
            job = None

    def tail(self, stage: Stage, job: Known | None, told: Outcome) -> tuple[str, ...]:
        """Last words, where the message alone does not say why."""
        if job is None or told.kind not in ("application", "node", "lost"):
            return ()
        printed = (last_lines(self.attempt(job, stage.id) / name) for name in ("stderr", "stdout", "job.out"))
        return next(filter(None, printed), ())

    def attempt(self, job: Known, id: str) -> Path:
        folder, number = job.stages[id]
        return self.root / folder / "attempts" / str(number)

    def exit_of(self, job: Known, id: str) -> Exit | None:
        try:
            return files.read_model(self.attempt(job, id) / "exit.json", Exit)
        except files.BadFile:
            return None

    # ------------------------------------------------------------------------------------ submitted, or found again
    def adopt(self, stage: Stage) -> Known | None:
        """The job that an earlier driver left for this stage, if the scheduler ever took it."""
        for job in self.left:
            if stage.id not in job.stages or stage.id in job.ended or job.stages[stage.id][0] != stage.folder:
                continue
            if job.id is None and self.exit_of(job, stage.id) is None:
                found = self.find(job.name)
                if found is None:
                    self.close(job)
                    self.note_end(stage, job, Outcome("lost", "the scheduler never took it"))
                    continue
                job = job._replace(id=found.id)
                self.log.note("submit", name=job.name, job=found.id, durable=True)
            self.enter(stage, job)
            self.log.note("adopt", stage.id, name=job.name, job=job.id)
            return job
        return None

    def find(self, name: str) -> Seen | None:
        """A job by its name; asked until the scheduler answers."""
        for pause in pauses(self.site.scheduler.poll_seconds):
            self.check()
            try:
                with self.submitting:
                    jobs = self.asked.named({name}, self.site.scheduler.command_timeout)
            except scheduler.Unreachable as error:
                self.away(str(error))
                self.sleep(pause)
                continue
            self.away("")
            return next((job for job in jobs if job.active), jobs[-1] if jobs else None)

    def submit(self, stage: Stage) -> Known:
        """Alone, or with those that share its request: the first to come submits for all that came with it."""
        request = self.requests[stage.id]
        job = self.send(request, [stage]) if len(request.stages) == 1 else self.gather(request, stage)
        self.enter(stage, job)
        return job

    def gather(self, request: Request, stage: Stage) -> Known:
        with self.guard:
            meeting = self.gatherings.setdefault(request.stages, Gathering())
            meeting.waiting.append(stage)
            first = len(meeting.waiting) == 1
        if first:
            self.sleep(GATHERING)
            with self.guard:
                del self.gatherings[request.stages]
            try:
                meeting.job = self.send(fewer(request, len(meeting.waiting), self.site), meeting.waiting)
            except BaseException as error:
                meeting.error = error
        while not (meeting.job or meeting.error):
            self.sleep(NAP)
        if isinstance(meeting.error, StageFailed):
            raise StageFailed(meeting.error.failure._replace(id=stage.id))
        if meeting.error:
            raise meeting.error
        return meeting.job

    def send(self, request: Request, stages: list[Stage]) -> Known:
        """Written down, submitted, written down. May take long: until the scheduler is there, and has room."""
        while not self.slots.acquire(timeout=NAP):
            self.check()
        try:
            job = self.submitted(request, stages)
        except BaseException:
            self.slots.release()
            raise
        with self.guard:
            self.holding.add(job.name)
        return job

    def submitted(self, request: Request, stages: list[Stage]) -> Known:
        attempts = []
        for stage in stages:
            made = prepare(self.root / stage.folder, self.spec(stage), launch.script(stage, self.site))
            attempts.append(launch.Attempt(stage.id, stage.kind, self.root / stage.folder, int(made.name)))
        places = {stage.id: (stage.folder, each.number) for stage, each in zip(stages, attempts)}
        name = name_of(self.root, [stage.key for stage in stages], attempts[0].number)
        job, there = (
            Known(name, str(self.root), self.site_name, places),
            attempts[0].folder / "attempts" / str(attempts[0].number),
        )
        asked = provider.Job(request, name, there, launch.batch(request, attempts, self.site), self.avoid)
        self.log.note("intend", name=name, root=job.root, site=job.site, stages=places, durable=True)
        id = None
        for pause in pauses(self.site.scheduler.poll_seconds):
            self.check()
            try:
                failpoint("before-submit")
                with self.submitting:
                    id = provider.submit(asked, self.site)
                failpoint("after-submit")
            except provider.Refused as error:
                self.close(job)
                for stage in stages:
                    self.note_end(stage, job, Outcome("configuration", str(error)))
                raise StageFailed(Failure(stages[0].id, "configuration", str(error), error.hint, ())) from None
            except provider.Limit as error:
                self.tell(stages, Seen("", name, "PENDING", str(error)))
                self.sleep(pause)
            except scheduler.Unreachable as error:
                self.away(str(error))
                self.sleep(pause)
                taken = self.find(name)  # only the answer may have been lost
                id = taken.id if taken else None
            if id is not None:
                break
        self.away("")
        job = job._replace(id=id)
        try:
            self.log.note("submit", name=name, job=id, durable=True)
        except OSError:
            pass  # the disk is full; the next driver finds the job by its name
        self.tell(stages, Seen(id, name, "PENDING"))
        return job

    def spec(self, stage: Stage) -> StageSpec:
        """With the memory that it has been found to need."""
        spec = stage.spec(self.stages)
        for _ in range(self.shrunk[stage.folder]):
            spec = spec.model_copy(update={"runtime": levers.smaller(spec.runtime, stage.settings, self.edges(stage))})
        return spec

    def edges(self, stage: Stage) -> float:
        """Of a mean training structure."""
        cards = [
            files.read_model(self.root / self.stages[need].folder / "card.json", ShardCard) for need in stage.needs
        ]
        counts = [card.counts["train"] for card in cards]
        return sum(count.edges for count in counts) / max(1, sum(count.structures for count in counts))

    # --------------------------------------------------------------------------------------- followed to its end
    def follow(self, stage: Stage, job: Known) -> Outcome:
        folder, attempt = self.root / stage.folder, self.attempt(job, stage.id)
        seen, missing, since, sentence = None, 0, None, None
        quiet = Quiet(folder, attempt, endless=stage.kind != "train")  # others may compute long without a word
        moment = time.time()
        self.watch.follow(job.id)
        hurry, patience = time.monotonic(), 1.0
        while True:
            self.check()
            exit = self.exit_of(job, stage.id)
            valid = self.invalid(stage, folder) if exit and exit.code == 0 else "no result"
            if not valid:
                return Outcome("done", "")
            if exit and time.monotonic() >= hurry:  # the job is about to end, so it is asked about sooner
                self.watch.hurry()
                hurry, patience = time.monotonic() + patience, 2 * patience
            snapshot = self.watch.after(moment, NAP)
            if snapshot is None:
                continue
            moment, before = snapshot.began, seen
            seen = snapshot.jobs.get(job.id)
            if seen is not None and seen.name != job.name:
                seen = None  # the id of somebody else's job, on another cluster or long after
            if seen is not None and seen.active:
                missing, since = 0, None
                if seen != before:
                    self.tell([stage], seen)
                if (
                    seen.hopeless and before is not None and before.hopeless
                ):  # and not just while the scheduler is looking
                    sentence = Outcome("configuration", f"job {job.id} would wait for ever: {seen.reason}",
                                       "ask for less, or for another queue: look at `queues` of the site's file")  # fmt: skip
                elif seen.state == "RUNNING" and quiet.seconds() > self.site.scheduler.stall_seconds and not sentence:
                    sentence = Outcome("stalled", f"no sign of life for {quiet.seconds():.0f} s; its job was cancelled")
                if sentence:
                    self.withdraw(job.id)
                continue
            missing, since = missing + 1, since or time.monotonic()
            if self.settled(seen, exit, missing, time.monotonic() - since):
                return sentence or self.judge(stage, folder, attempt, exit, seen)

    def settled(self, seen: Seen | None, exit: Exit | None, missing: int, seconds: float) -> bool:
        """A job is over when the scheduler says so and its files had the time to be seen here."""
        if exit is not None and exit.code != 0:
            return seen is not None or missing >= 2
        if seen is not None and seen.state in ("CANCELLED", "NODE_FAIL", "PREEMPTED", "TIMEOUT", "OUT_OF_MEMORY"):
            return True
        return missing >= 2 and seconds >= self.site.scheduler.late_seconds

    def judge(self, stage: Stage, folder: Path, attempt: Path, exit: Exit | None, seen: Seen | None) -> Outcome:
        valid = self.invalid(stage, folder)
        if valid and (attempt / WITHDRAWN).exists():
            return Outcome("withdrawn", "cancelled with `run.py cancel`", "type the same command again to go on")
        try:
            error = files.read_model(folder / "error.json", StageError)
        except files.BadFile:
            error = None
        words = "\n".join(line for name in ("job.out", "stdout", "stderr") for line in last_lines(attempt / name))
        if valid and exit is not None and exit.code == 0 and files.disk_is_full(folder):
            return DISK_FULL
        return outcome.classify(exit, seen, error, words, valid)

    def invalid(self, stage: Stage, folder: Path) -> str:
        verdict = files.verify(folder, stage.key)
        return "" if verdict.done else verdict.reason

    def withdraw(self, id: str) -> None:
        try:
            self.asked.cancel([id], self.site.scheduler.command_timeout)
        except scheduler.Unreachable:
            pass  # it is asked about again, and closed to any later beginning

    def close(self, job: Known, *ids: str) -> None:
        """Should it begin in spite of all, it ends at once."""
        for id in ids or job.stages:
            try:
                self.attempt(job, id).mkdir(parents=True, exist_ok=True)
                (self.attempt(job, id) / CLOSED).touch()
            except OSError:
                pass  # a full disk; the stage's lock is there too

    # --------------------------------------------------------------------------------------------- book-keeping
    def enter(self, stage: Stage, job: Known) -> None:
        with self.guard:
            if job.name not in self.open and job.name not in self.holding and self.slots.acquire(blocking=False):
                self.holding.add(job.name)  # adopted
            self.open.setdefault(job.name, set()).add(stage.id)

    def end(self, stage: Stage, job: Known, ended: Outcome) -> None:
        with self.guard:
            self.open[job.name].discard(stage.id)
            over = not self.open[job.name]
            if over and job.name in self.holding:
                self.holding.discard(job.name)
                self.slots.release()
        if over:
            self.watch.forget(job.id)
        self.close(job, stage.id)
        self.note_end(stage, job, ended)

    def note_end(self, stage: Stage, job: Known, ended: Outcome) -> None:
        folder, number = job.stages[stage.id]
        self.log.note("ended", stage.id, name=job.name, job=job.id, kind=ended.kind, message=ended.message, folder=folder,
                      attempt=number, progress=progress(self.root / folder))  # fmt: skip

    def tell(self, stages: list[Stage], seen: Seen) -> None:
        """To the screen, and to whoever reads the journal."""
        for stage in stages:
            self.say(stage.id, "running" if seen.state == "RUNNING" else "queued")
        self.log.note("job", stages[0].id, name=seen.name, state=seen.state, reason=seen.reason, nodes=seen.nodes)

    def away(self, message: str) -> None:
        """The scheduler does not answer; "": it does, again."""
        if bool(message) != self.out_of_reach:
            self.out_of_reach = bool(message)
            self.log.note("unreachable" if message else "reachable", message=message)
            self.say("", message)

    def wait_for_space(self, stage: Stage) -> None:
        """Nothing new is begun while the disk is full."""
        self.tell([stage], Seen("", "", "PENDING", "waits for space on the disk"))
        while shutil.disk_usage(self.root).free < 256 * 1024**2:
            self.sleep(5.0)
        self.sleep(5.0)

    def check(self) -> None:
        if self.stopping.is_set():
            raise Interrupted("the driver is stopping")

    def sleep(self, seconds: float) -> None:
        self.stopping.wait(seconds)
        self.check()

    def kept(self) -> int:
        """How many jobs go on when this driver ends."""
        with self.guard:
            return sum(bool(stages) for stages in self.open.values())

    def stop(self) -> None:
        """The jobs go on."""
        self.stopping.set()
        self.watch.stop()


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


def progress(folder: Path) -> float:
    """The last step that cannot be lost any more."""
    return max((int(p.name[5:]) for p in (folder / "checkpoints").glob("step-*") if p.name[5:].isdigit()), default=0)


def fewer(request: Request, stages: int, site: SiteConfig) -> Request:
    """When not all of them came."""
    least = site.queues[request.queue].nodes[0]
    return request._replace(nodes=min(request.nodes, max(least, stages * request.nodes_each)))


def pauses(first: float) -> Iterator[float]:
    pause = first
    while True:
        yield pause
        pause = min(300.0, 2 * pause)


def failpoint(name: str) -> None:
    """For the tests: die here, as by kill -9."""
    if os.environ.get("GNNSCALE_DIE_AT") == name:
        os.kill(os.getpid(), signal.SIGKILL)
