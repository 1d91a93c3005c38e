"""Stages as batch jobs: each in as many as it takes, shared where that saves a wait, and adopted by the next driver.

A job is written down before it is submitted and after, so whatever kills the driver, the next one knows which jobs there
may be, finds them by their names, and submits none twice. Jobs outlive the driver; nothing here stops them.
"""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.errors import Problem
from gnnscale.contract.results import StageResult
from workflow.config.site import SiteConfig
from workflow.jobs import outcome
from workflow.jobs import requests as queueing
from workflow.jobs.follow import Following
from workflow.jobs.outcome import Outcome
from workflow.jobs.requests import Request
from workflow.jobs.run_context import DISK_FULL, NAP, Office, progress
from workflow.jobs.submit import Submission
from workflow.plan.stage import Stage
from workflow.run_directory.attempt import Failure, StageFailed, disk_failure, last_lines
from workflow.run_directory.journal import Journal, Known, unfinished
from workflow.scheduler.poller import Watch
from workflow.scheduler.query import Seen

GATHERING = 5.0  # s at most in which the stages of one job come together
SLOW = 60.0  # s more at most for those that nothing keeps from coming but a slow machine
SPACE = 256 * 2**20  # bytes that must be free before anything new is begun on a disk that was full


class Gathering:
    """Stages on their way into a job that they share, or into several."""

    def __init__(self):
        self.waiting: list[Stage] = []
        self.jobs: dict[str, Known] = {}
        self.errors: dict[str, BaseException] = {}


class Jobs:
    """`run` for a stage on a thread of its own, as Processes has it."""

    def __init__(
        self,
        root: Path,
        site: SiteConfig,
        site_name: str,
        stages: dict[str, Stage],
        requests: dict[str, Request],
        log: Journal,
        say: Callable[..., None],
        ready: Callable[[], Collection[str]] = tuple,
    ):
        """`ready` gives the stages that nothing keeps from running, whether or not they run already."""
        self.office = Office(root, site, site_name, log, say)
        self.root, self.site, self.stages, self.requests, self.ready = root, site, stages, requests, ready
        asked = site.scheduler
        self.watch = Watch(self.office.scheduler, asked.poll_seconds, asked.command_timeout, self.office.away)
        self.submission = Submission(self.office, stages)
        self.slots = threading.Semaphore(asked.max_jobs)
        self.guard = threading.Lock()  # of what follows
        self.gatherings: dict[tuple[str, ...], Gathering] = {}
        self.arrived: set[str] = set()  # stages that have a job, or are on their way into one
        self.open: dict[str, set[str]] = {}  # name of a job -> its stages of this study that have not ended
        self.riding: dict[str, Known] = {}  # evaluation -> the job of its training, which will do it
        self.alone: set[str] = set()  # stages without ranks that shall share no job any more
        self.holding: set[str] = set()  # names of jobs that count against `max_jobs`
        self.left = unfinished(root)
        self.check_site()

    def check_site(self) -> None:
        for job in self.left:
            running = [id for id in job.stages if id not in job.ended and self.office.exit_of(job, id) is None]
            if job.site != self.office.site_name and job.id and running:
                raise Problem(
                    f"{self.root}: job {job.id} ({running[0]}) was submitted to site {job.site} and may still be there",
                    f"go on with --site {job.site}, or end it with: python workflow/run.py cancel --site {job.site}",
                    f"if this is a copy of what ran there: remove {self.office.log.path}",
                )

    # ------------------------------------------------------------------------------------------------ a stage
    def run(self, stage: Stage) -> StageResult:
        """Until the stage is done, in as many jobs as it takes, or until there is no sense in another one."""
        folder, budget = self.root / stage.folder, outcome.Budget(progress(self.root / stage.folder))
        adopted = None
        job = self.riding.get(stage.id) or (adopted := self.adopt(stage))
        if job:
            self.arrived.add(stage.id)
        while True:
            try:
                job = job or self.submit(stage)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise StageFailed(disk_failure(stage, error)) from None
                ended = DISK_FULL
            else:
                preemptible = self.site.queues[self.requests[stage.id].queue].preemptible
                following = Following(self.office, self.watch, stage, job, preemptible)
                ended = following.outcome()
                self.end(stage, job, ended, following.is_over)
            if ended.kind == "done":
                return files.verify(folder, stage.key).result
            if ended.kind == "withdrawn" and job is adopted:
                job = None  # cancelled before this driver began, so by now it is wanted again
                continue
            if ended.kind in ("stopped", "walltime") and job and set(stage.needs) & job.stages.keys():
                ended = ended._replace(begun=False)  # its training had used up the time
            action, told = budget.decide(ended, progress(folder))
            if action == "fail" or (action == "shrink" and (stage.kind == "memory_levers" or stage.id in self.alone)):
                raise StageFailed(Failure(stage.id, told.kind, told.message, told.hint, self.tail(stage, job, told)))
            if told.hosts and self.site.scheduler.exclude_nodes:
                self.submission.avoid_also(told.hosts)
            if action == "shrink" and stage.kind == "train":
                self.submission.shrunk[stage.folder] += 1
            elif action == "shrink":
                self.alone.add(stage.id)  # others of its job may have had the memory
            if action == "space":
                self.wait_for_space(stage)
            job = None

    def found(self, stage: Stage) -> None:
        """It needs no running, since it has a result: made by a job that ended while nobody looked, perhaps."""
        for job in filter(None, [self.riding.get(stage.id), *self.left]):
            if job.stages.get(stage.id, ("",))[0] == stage.folder and stage.id not in job.ended:
                self.end(stage, job, Outcome("done", ""))
                return

    def tail(self, stage: Stage, job: Known | None, told: Outcome) -> tuple[str, ...]:
        """Last words, where the message alone does not say why."""
        if told.tail or job is None or told.kind not in ("application", "node", "lost"):
            return told.tail
        attempt = self.office.attempt(job, stage.id)
        printed = (last_lines(attempt / name) for name in ("stderr", "stdout", "job.out"))
        return next(filter(None, printed), ())

    # ------------------------------------------------------------------------------------ found again, or submitted
    def adopt(self, stage: Stage) -> Known | None:
        """The job that an earlier driver left for this stage, if the scheduler ever took it."""
        for job in self.left:
            if stage.id not in job.stages or stage.id in job.ended or job.stages[stage.id][0] != stage.folder:
                continue
            if job.id is None:
                found = self.submission.find(job.name)
                left = self.office.exit_of(job, stage.id)  # it may have ended and been forgotten since
                id = found.id if found else left.job if left else None
                if id is None:
                    self.office.close(job)
                    self.office.note_end(stage.id, job, Outcome("lost", "the scheduler never took it"))
                    continue
                job = job._replace(id=id)
                self.office.log.note("submit", name=job.name, job=id, durable=True)
            self.enter(job)
            self.office.log.note("adopt", stage.id, name=job.name, job=job.id)
            return job
        return None

    def submit(self, stage: Stage) -> Known:
        """Alone, or with those that share its job: the first to come submits for all that came with it."""
        request = self.requests[stage.id]
        if stage.id in self.alone:
            return self.send(queueing.serial([stage], self.site)[0], [stage])
        if stage.levers is None:  # and not in the job of its training, or it would be followed there
            return self.gather(("without ranks",), stage)
        return self.gather(request.stages, stage) if len(request.stages) > 1 else self.send(request, [stage])

    def gather(self, key: tuple[str, ...], stage: Stage) -> Known:
        with self.guard:
            meeting = self.gatherings.setdefault(key, Gathering())
            meeting.waiting.append(stage)
            self.arrived.add(stage.id)
            first = len(meeting.waiting) == 1
        if first:
            self.wait_for_others(stage)
            with self.guard:
                del self.gatherings[key]
            self.send_all(meeting)
        while stage.id not in meeting.jobs and stage.id not in meeting.errors:
            self.office.sleep(NAP)
        error = meeting.errors.get(stage.id)
        if isinstance(error, StageFailed):
            raise StageFailed(error.failure._replace(id=stage.id))
        if error:
            raise error
        return meeting.jobs[stage.id]

    def wait_for_others(self, stage: Stage) -> None:
        """Sleep while those come that share a job with this one, and on while some are ready and still to come."""
        self.office.sleep(min(GATHERING, self.site.scheduler.poll_seconds))
        late = time.monotonic() + SLOW
        while self.still_to_come(stage) and time.monotonic() < late:
            self.office.sleep(NAP)

    def still_to_come(self, stage: Stage) -> set[str]:
        ready = set(self.ready())
        with self.guard:
            ready -= self.arrived
        if stage.levers is not None:
            return ready & set(self.requests[stage.id].stages)
        return {id for id in ready if self.stages[id].levers is None}

    def send_all(self, meeting: Gathering) -> None:
        ids = {stage.id for stage in meeting.waiting}
        came = [stage for id, stage in self.stages.items() if id in ids]  # as planned, whoever was the faster
        if came[0].levers is not None:
            requests = [fewer(self.requests[came[0].id], came, self.site)]
        else:
            requests = queueing.serial(came, self.site)
        for request in requests:
            try:
                job = self.send(request, [stage for stage in came if stage.id in request.stages])
                meeting.jobs |= dict.fromkeys(request.stages, job)
            except BaseException as error:
                meeting.errors |= dict.fromkeys(request.stages, error)

    def send(self, request: Request, stages: list[Stage]) -> Known:
        """As soon as there may be one more job."""
        mine = {stage.id for stage in stages}
        after = [(id, before) for id, before in request.after if before in mine and self.wanted(id)]
        while not self.slots.acquire(timeout=NAP):
            self.office.check()
        try:
            job = self.submission.submit(request._replace(after=tuple(after)))
        except BaseException:
            self.slots.release()
            raise
        self.enter(job, counted=True)
        return job

    def wanted(self, id: str) -> bool:
        """Whether an evaluation may follow its training. One that has a result may keep it: that is seen afterwards."""
        stage = self.stages.get(id)
        return stage is not None and not files.verify(self.root / stage.folder, stage.key).done

    # --------------------------------------------------------------------------------------------- book-keeping
    def enter(self, job: Known, counted: bool = False) -> None:
        """All that is wanted of it is open from now on."""
        with self.guard:
            if job.name in self.open:
                return
            if counted or self.slots.acquire(blocking=False):  # one that was adopted may be one too many
                self.holding.add(job.name)
            mine = {
                id: self.stages[id]
                for id, (folder, _) in job.stages.items()
                if id not in job.ended and id in self.stages and self.stages[id].folder == folder
            }
            self.open[job.name] = set(mine)
            self.riding |= {id: job for id, stage in mine.items() if set(stage.needs) & job.stages.keys()}

    def end(self, stage: Stage, job: Known, ended: Outcome, is_over: bool = False) -> None:
        """With it ends what would have followed it in its job, if there is nothing to follow.

        If the whole job `is_over` without having done its work, its other stages will be back soon, too.
        """
        ids = [stage.id]
        if ended.kind != "done":
            carried = [id for id, its in list(self.riding.items()) if its.name == job.name]
            ids += [id for id in carried if stage.id in self.stages[id].needs]
        for id in ids:
            self.office.close(job, id)
            self.office.note_end(
                id, job, ended if id == stage.id else Outcome("not-begun", f"{stage.id} did not end well")
            )
        with self.guard:
            left = self.open.get(job.name, set())
            left.difference_update(ids)
            for id in ids:
                self.riding.pop(id, None)
            if is_over and ended.kind != "done":
                self.arrived -= left
            if not left and job.name in self.holding:
                self.holding.discard(job.name)
                self.slots.release()
        if not left:
            self.watch.forget(job.id)

    def wait_for_space(self, stage: Stage) -> None:
        """Nothing new is begun while the disk is full."""
        self.office.tell([stage], Seen("", "", "PENDING", "waits for space on the disk"))
        while shutil.disk_usage(self.root).free < SPACE:
            self.office.sleep(5.0)
        self.office.sleep(5.0)

    def kept(self) -> int:
        """How many jobs go on when this driver ends."""
        with self.guard:
            return sum(bool(stages) for stages in self.open.values())

    def stop(self) -> None:
        """The jobs go on."""
        self.office.stopping.set()
        self.watch.stop()


def fewer(request: Request, came: list[Stage], site: SiteConfig) -> Request:
    """When not all of them came."""
    ids = tuple(id for id in request.stages if id in {stage.id for stage in came})
    least = site.queues[request.queue].nodes[0]
    return request._replace(stages=ids, nodes=min(request.nodes, max(least, len(ids) * request.nodes_each)))
