"""Stages as batch jobs: each in as many as it takes, shared where that saves a wait, and adopted by the next driver.

A job is recorded in the journal before and after it is submitted. So whatever kills the driver, the next one knows which
jobs there may be, finds them by their names, and submits none twice. Jobs outlive the driver; nothing here stops them.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.command_name import command_name
from gnnscale.contract.errors import UserError
from gnnscale.contract.results import StageResult
from workflow.config.site import SiteConfig
from workflow.jobs.follow import JobFollower
from workflow.jobs.outcome import RetryBudget
from workflow.jobs.requests import Request, serial_requests
from workflow.jobs.run_context import FILE_POLL_SECONDS, RunContext, saved_progress
from workflow.jobs.submit import JobSubmitter
from workflow.plan.stage import Stage
from workflow.run_directory.attempt import (
    DISK_FULL,
    AttemptOutcome,
    StageUnfinished,
    disk_error_outcome,
    is_disk_full,
    read_last_output,
)
from workflow.run_directory.journal import Journal, RecordedJob, unfinished_jobs
from workflow.scheduler.interface import JobStatus
from workflow.scheduler.poller import SchedulerPoller

GROUP_SECONDS = 5.0  # at most, in which the stages of one job arrive
LATE_SECONDS = 60.0  # more at most, for stages that a slow machine delays
MIN_FREE_BYTES = 256 * 2**20  # before anything new begins on a disk that was full
SPACE_POLL_SECONDS = 5.0


class JobGroup:
    """Stages on their way into a job that they share, or into several."""

    def __init__(self) -> None:
        self.waiting: list[Stage] = []
        self.jobs: dict[str, RecordedJob] = {}  # by stage
        self.errors: dict[str, BaseException] = {}  # by stage


class BatchJobs:
    """Runner of stages as batch jobs, each stage on a thread of its own; has `run` and `stop` as LocalProcesses has."""

    def __init__(
        self,
        root: Path,
        site: SiteConfig,
        site_name: str,
        stages: dict[str, Stage],
        requests: dict[str, Request],
        log: Journal,
        show: Callable[[str, str], None],
        find_ready: Callable[[], Collection[str]] = tuple,
    ):
        """`find_ready` returns the stages that wait for no other stage and have not ended, running or not."""
        self.context = RunContext(root, site, site_name, log, show)
        self.root, self.site, self.stages, self.requests = root, site, stages, requests
        self.find_ready = find_ready
        self.settings = self.context.settings
        self.poller = SchedulerPoller(
            self.context.scheduler,
            self.settings.poll_seconds,
            self.settings.command_timeout,
            self.context.scheduler_unreachable,
        )
        self.submitter = JobSubmitter(self.context, stages)
        self.slots = threading.Semaphore(self.settings.max_jobs)
        self.guard = threading.Lock()  # of all that follows
        self.groups: dict[tuple[str, ...], JobGroup] = {}
        self.arrived: set[str] = set()  # stages that have a job, or are on their way into one
        self.open: dict[str, set[str]] = {}  # name of a job -> its stages of this study that have not ended
        self.carried: dict[str, RecordedJob] = {}  # evaluation -> the job of its training, which runs it too
        self.alone: set[str] = set()  # stages without ranks that share no job any more
        self.counted: set[str] = set()  # names of jobs that count against `max_jobs`
        self.left = unfinished_jobs(root)
        self.check_site()

    def check_site(self) -> None:
        """Raise if jobs of another site may still run in this directory."""
        for job in self.left:
            running = [id for id in job.stages if id not in job.ended and self.context.read_exit(job, id) is None]
            if job.site != self.context.site_name and job.id and running:
                raise UserError(
                    f"{self.root}: job {job.id} ({running[0]}) was submitted to site {job.site} and may still be there",
                    f"go on with --site {job.site}, or end it with: {command_name()} cancel --site {job.site}",
                    f"if this is a copy of what ran there: remove {self.context.log.path}",
                )

    # ------------------------------------------------------------------------------------------------ a stage
    def run(self, stage: Stage) -> StageResult:
        """Run the stage until it is done, in as many jobs as it takes, or until another job makes no sense."""
        folder = self.root / stage.folder
        budget = RetryBudget(saved_progress(folder))
        adopted = None
        job = self.carried.get(stage.id) or (adopted := self.adopt(stage))
        if job:
            self.note_arrival(stage)
        while True:
            job, outcome = self.attempt(stage, job)
            if outcome.kind == "done":
                result = files.verify(folder, stage.key).result
                assert result is not None, f"{stage.id}: its result was valid a moment ago"
                return result
            if outcome.kind == "withdrawn" and job is adopted:
                job = None  # cancelled before this driver began, so by now it is wanted again
                continue
            if outcome.kind in ("stopped", "walltime") and job and set(stage.needs) & job.stages.keys():
                outcome = outcome._replace(begun=False)  # its training had used up the time
            action, outcome = budget.decide(outcome, saved_progress(folder))
            if action == "fail" or (action == "shrink" and not self.can_shrink(stage)):
                raise StageUnfinished(outcome._replace(tail=self.last_output(stage, job, outcome)))
            self.learn(stage, job, outcome)
            if action == "space":
                self.wait_for_space(stage)
            job = None

    def attempt(self, stage: Stage, job: RecordedJob | None) -> tuple[RecordedJob | None, AttemptOutcome]:
        """Follow the job of the stage to its end, after submitting it where there is none."""
        try:
            job = job or self.submit(stage)
        except OSError as error:
            if not is_disk_full(error):
                raise StageUnfinished(disk_error_outcome(error)) from None
            return None, DISK_FULL
        preemptible = self.site.queues[self.requests[stage.id].queue].preemptible
        follower = JobFollower(self.context, self.poller, stage, job, preemptible)
        outcome = follower.wait_for_end()
        self.end(stage, job, outcome, follower.is_job_over)
        return job, outcome

    def can_shrink(self, stage: Stage) -> bool:
        return stage.kind != "memory_levers" and stage.id not in self.alone

    def learn(self, stage: Stage, job: RecordedJob | None, outcome: AttemptOutcome) -> None:
        """Let the next job avoid bad nodes, and use less memory where that ran out."""
        if outcome.bad_hosts and self.settings.exclude_nodes:
            self.submitter.learn_from(job, outcome.bad_hosts)
        if outcome.kind == "out-of-memory" and stage.kind == "train":
            self.submitter.shrunk[stage.folder] += 1
        elif outcome.kind == "out-of-memory":
            self.alone.add(stage.id)  # other stages of its job may have had the memory

    def note_found(self, stage: Stage) -> None:
        """End a stage that has a result already, perhaps from a job that ended while no driver ran."""
        for job in filter(None, [self.carried.get(stage.id), *self.left]):
            if job.stages.get(stage.id, ("",))[0] == stage.folder and stage.id not in job.ended:
                self.end(stage, job, AttemptOutcome("done", ""))
                return

    def last_output(self, stage: Stage, job: RecordedJob | None, outcome: AttemptOutcome) -> tuple[str, ...]:
        """Return the last lines printed, where the message alone does not say why."""
        if outcome.tail or job is None or outcome.kind not in ("application", "node", "lost"):
            return outcome.tail
        return read_last_output(self.context.attempt_folder(job, stage.id))

    # ------------------------------------------------------------------------------------ found again, or submitted
    def adopt(self, stage: Stage) -> RecordedJob | None:
        """Return the job that an earlier driver left for this stage, if the scheduler ever took it."""
        for job in self.left:
            if stage.id not in job.stages or stage.id in job.ended or job.stages[stage.id][0] != stage.folder:
                continue
            if job.id is None:
                id = self.find_id(job, stage)
                if id is None:
                    self.context.close_attempts(job)
                    has_begun = (self.context.attempt_folder(job, stage.id) / "stdout").exists()
                    message = "it ended without a trace" if has_begun else "the scheduler never took it"
                    self.context.note_end(stage.id, job, AttemptOutcome("lost", message))
                    continue
                job = job._replace(id=id)
                self.context.log.note("submit", name=job.name, job=id, durable=True)
            self.enter(job)
            self.context.log.note("adopt", stage.id, name=job.name, job=job.id)
            return job
        return None

    def find_id(self, job: RecordedJob, stage: Stage) -> str | None:
        if found := self.submitter.find(job.name):
            return found.id
        exit = self.context.read_exit(job, stage.id)  # it may have ended, and the scheduler have forgotten it
        return exit.job if exit else None

    def submit(self, stage: Stage) -> RecordedJob:
        """Submit the stage, alone or in a shared job. The first thread to arrive submits for the whole group."""
        request = self.requests[stage.id]
        if stage.id in self.alone:
            return self.send(serial_requests([stage], self.site)[0], [stage])
        if stage.levers is None:  # and not in the job of its training, or it would be followed there
            return self.join_group(("without ranks",), stage)
        return self.join_group(request.stages, stage) if len(request.stages) > 1 else self.send(request, [stage])

    def join_group(self, key: tuple[str, ...], stage: Stage) -> RecordedJob:
        with self.guard:
            group = self.groups.setdefault(key, JobGroup())
            group.waiting.append(stage)
            self.arrived.add(stage.id)
            is_first = len(group.waiting) == 1
        if is_first:
            self.wait_for_others(stage)
            with self.guard:
                del self.groups[key]
            self.send_group(group)
        while stage.id not in group.jobs and stage.id not in group.errors:
            self.context.sleep(FILE_POLL_SECONDS)
        if stage.id in group.errors:
            raise group.errors[stage.id]
        return group.jobs[stage.id]

    def note_arrival(self, stage: Stage) -> None:
        with self.guard:
            self.arrived.add(stage.id)

    def wait_for_others(self, stage: Stage) -> None:
        """Wait while the stages of one job arrive, and longer while some are ready and have not arrived."""
        self.context.sleep(min(GROUP_SECONDS, self.settings.poll_seconds))
        deadline = time.monotonic() + LATE_SECONDS
        while self.find_missing(stage) and time.monotonic() < deadline:
            self.context.sleep(FILE_POLL_SECONDS)

    def find_missing(self, stage: Stage) -> set[str]:
        """Return the stages that may share a job with this one, are ready, and have not arrived."""
        ready = set(self.find_ready())
        with self.guard:
            ready -= self.arrived
        if stage.levers is not None:
            return ready & set(self.requests[stage.id].stages)
        return {id for id in ready if self.stages[id].levers is None}

    def send_group(self, group: JobGroup) -> None:
        waiting = {stage.id for stage in group.waiting}
        stages = [stage for id, stage in self.stages.items() if id in waiting]  # as planned, whichever came first
        if stages[0].levers is not None:
            requests = [shrink_request(self.requests[stages[0].id], stages, self.site)]
        else:
            requests = serial_requests(stages, self.site)
        for request in requests:
            try:
                job = self.send(request, [stage for stage in stages if stage.id in request.stages])
                group.jobs |= dict.fromkeys(request.stages, job)
            except BaseException as error:
                group.errors |= dict.fromkeys(request.stages, error)

    def send(self, request: Request, stages: list[Stage]) -> RecordedJob:
        """Submit one job, as soon as the site's limit allows one more."""
        ids = {stage.id for stage in stages}
        evaluations = [(id, training) for id, training in request.evaluations if training in ids and self.is_wanted(id)]
        while not self.slots.acquire(timeout=FILE_POLL_SECONDS):
            self.context.raise_if_stopping()
        try:
            job = self.submitter.submit(request._replace(evaluations=tuple(evaluations)))
        except BaseException:
            self.slots.release()
            raise
        self.enter(job, has_slot=True)
        return job

    def is_wanted(self, id: str) -> bool:
        """Tell whether an evaluation still has no result, so that it follows its training."""
        stage = self.stages.get(id)
        return stage is not None and not files.verify(self.root / stage.folder, stage.key).done

    # --------------------------------------------------------------------------------------------- book-keeping
    def enter(self, job: RecordedJob, has_slot: bool = False) -> None:
        """Open a job's stages of this study that have not ended. `has_slot`: it counts against `max_jobs` already."""
        with self.guard:
            if job.name in self.open:
                return
            if has_slot or self.slots.acquire(blocking=False):  # one that was adopted may be one too many
                self.counted.add(job.name)
            own = {
                id: self.stages[id]
                for id, (folder, _) in job.stages.items()
                if id not in job.ended and id in self.stages and self.stages[id].folder == folder
            }
            self.open[job.name] = set(own)
            self.carried |= {id: job for id, stage in own.items() if set(stage.needs) & job.stages.keys()}

    def end(self, stage: Stage, job: RecordedJob, outcome: AttemptOutcome, is_job_over: bool = False) -> None:
        """Close a stage in its job; if it has no result, also those of the job that need it.

        Where the whole job is over without having done its work, its other stages will soon want another one, too.
        """
        ids = [stage.id]
        if outcome.kind != "done":
            followers = [id for id, carrier in list(self.carried.items()) if carrier.name == job.name]
            ids += [id for id in followers if stage.id in self.stages[id].needs]
        not_begun = AttemptOutcome("not-begun", f"{stage.id} did not end well")
        for id in ids:
            self.context.close_attempts(job, id)
            self.context.note_end(id, job, outcome if id == stage.id else not_begun)
        with self.guard:
            left = self.open.get(job.name, set())
            left.difference_update(ids)
            for id in ids:
                self.carried.pop(id, None)
            if is_job_over and outcome.kind != "done":
                self.arrived -= left
            if not left and job.name in self.counted:
                self.counted.discard(job.name)
                self.slots.release()
        if not left and job.id is not None:
            self.poller.forget(job.id)

    def wait_for_space(self, stage: Stage) -> None:
        """Wait while the disk is full: nothing new is begun then."""
        self.context.report_status([stage], JobStatus("", "", "PENDING", "waits for space on the disk"))
        while shutil.disk_usage(self.root).free < MIN_FREE_BYTES:
            self.context.sleep(SPACE_POLL_SECONDS)
        self.context.sleep(SPACE_POLL_SECONDS)

    def jobs_left_running(self) -> int:
        with self.guard:
            return sum(bool(stages) for stages in self.open.values())

    def stop(self) -> None:
        """Stop waiting for jobs; they keep running."""
        self.context.stopping.set()
        self.poller.stop()


def shrink_request(request: Request, present: list[Stage], site: SiteConfig) -> Request:
    """Return the request for those of its stages that are present, on as few nodes as they take."""
    present_ids = {stage.id for stage in present}
    ids = tuple(id for id in request.stages if id in present_ids)
    least = site.queues[request.queue].nodes[0]
    return request._replace(stages=ids, nodes=min(request.nodes, max(least, len(ids) * request.nodes_each)))
