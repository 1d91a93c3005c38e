"""Submission of jobs: recorded in the journal before and after, found again by name, and never submitted twice."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator

from gnnscale.contract import files
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.contract.settings import TrainSettings
from gnnscale.contract.stage_spec import StageSpec
from workflow.config.site import SiteConfig
from workflow.jobs import launch, parsl_provider
from workflow.jobs.requests import Request
from workflow.jobs.run_context import RunContext
from workflow.plan import memory_fit
from workflow.plan.stage import Stage
from workflow.run_directory.attempt import AttemptOutcome, StageUnfinished, prepare_attempt
from workflow.run_directory.journal import RecordedJob, job_name, read_events
from workflow.scheduler.interface import JobStatus, SchedulerUnreachable

MAX_AVOIDED_NODES = 16  # the last ones that failed
MAX_SPARE_NODES = 4  # of a job, where the scheduler cannot leave nodes out
MAX_PAUSE_SECONDS = 300.0


class JobSubmitter:
    """Submitter that learns from earlier jobs which nodes to avoid, and which trainings must use less memory."""

    def __init__(self, context: RunContext, stages: dict[str, Stage]):
        self.context, self.stages = context, stages
        self.avoid: tuple[str, ...] = ()
        self.avoided_by: dict[str, tuple[str, ...]] = {}  # name of a job -> nodes that it avoids
        ends = [event for event in read_events(context.log.path) if event["event"] == "ended"]
        self.shrunk = Counter(event["folder"] for event in ends if event["kind"] == "out-of-memory")

    def learn_from(self, job: RecordedJob | None, hosts: tuple[str, ...]) -> None:
        """Avoid these nodes too; but not those that a job was given although it avoided them: there are too few others."""
        if job is not None and set(hosts) <= set(self.avoided_by.get(job.name, ())):
            self.avoid = tuple(host for host in self.avoid if host not in hosts)
            return
        self.avoid = tuple(dict.fromkeys((*self.avoid, *hosts)))[-MAX_AVOIDED_NODES:]

    def find(self, name: str) -> JobStatus | None:
        """Find a job by its name; repeat the query until the scheduler answers."""
        context, pauses = self.context, backoff_pauses(self.context.settings.poll_seconds)
        while True:
            context.raise_if_stopping()
            try:
                with context.submitting:
                    jobs = context.scheduler.find_by_name({name}, context.settings.command_timeout)
            except SchedulerUnreachable as error:
                context.scheduler_unreachable(str(error))
                context.sleep(next(pauses))
            else:
                context.scheduler_unreachable("")
                return next((job for job in jobs if job.is_active), jobs[-1] if jobs else None)

    def submit(self, request: Request) -> RecordedJob:
        """Submit one job for all stages of the request; wait until the scheduler answers and takes one more job."""
        context, stages = self.context, [self.stages[id] for id in request.all_stages]
        attempts = [self.prepare(stage) for stage in stages]
        numbers = {stage.id: (stage.folder, each.number) for stage, each in zip(stages, attempts)}
        name = job_name(context.root, [stage.key for stage in stages], attempts[0].number)
        job = RecordedJob(name, str(context.root), context.site_name, numbers)
        context.log.note("intend", name=name, root=job.root, site=job.site, stages=numbers, durable=True)
        id = self.submit_attempts(request, job, attempts, stages)
        try:
            context.log.note("submit", name=name, job=id, durable=True)
        except OSError:
            pass  # the disk is full; the next driver finds the job by its name
        context.report_status(stages, JobStatus(id, name, "PENDING"))
        return job._replace(id=id)

    def prepare(self, stage: Stage) -> launch.StageAttempt:
        folder = self.context.root / stage.folder
        command = launch.render_command(stage, self.context.site, self.context.root)
        number = int(prepare_attempt(folder, self.adapted_spec(stage), command).name)
        return launch.StageAttempt(stage.id, stage.kind, folder, number)

    def submit_attempts(
        self, request: Request, job: RecordedJob, attempts: list[launch.StageAttempt], stages: list[Stage]
    ) -> str:
        """Return the id of the job, once the scheduler has taken it; without nodes to avoid, if too few others are left."""
        while True:
            script = self.make_script(request, job.name, attempts)
            try:
                return self.submit_script(script, job, stages)
            except parsl_provider.JobRefused as error:
                if not script.avoid:
                    self.close(job, stages, refused := AttemptOutcome("configuration", str(error), error.hint))
                    raise StageUnfinished(refused) from None
                self.avoid = ()

    def make_script(self, request: Request, name: str, attempts: list[launch.StageAttempt]) -> parsl_provider.JobScript:
        """Make the script of a job; where the scheduler cannot leave nodes out, with spare nodes instead of them."""
        site, first = self.context.site, attempts[0]
        if not self.context.scheduler.excludes_nodes:
            request = add_spare_nodes(request, len(self.avoid), site)
        self.avoided_by[name] = self.avoid
        body = launch.render_job_body(request, attempts, site, avoid=self.avoid)
        return parsl_provider.JobScript(request, name, first.folder / "attempts" / str(first.number), body, self.avoid)

    def submit_script(self, script: parsl_provider.JobScript, job: RecordedJob, stages: list[Stage]) -> str:
        """Return the id of the job, once the scheduler has taken it; raise JobRefused if it never will."""
        context, pauses = self.context, backoff_pauses(self.context.settings.poll_seconds)
        while True:
            context.raise_if_stopping()
            id = None
            try:
                die_at_failpoint("before-submit")
                with context.submitting:
                    id = parsl_provider.submit(script, context.site)
                die_at_failpoint("after-submit")
            except parsl_provider.JobLimitReached as error:
                context.report_status(stages, JobStatus("", job.name, "PENDING", str(error)))
                context.sleep(next(pauses))
            except SchedulerUnreachable as error:
                context.scheduler_unreachable(str(error))
                context.sleep(next(pauses))
                found = self.find(job.name)  # only the answer may have been lost
                id = found.id if found else None
            if id is not None:
                context.scheduler_unreachable("")
                return id

    def close(self, job: RecordedJob, stages: list[Stage], outcome: AttemptOutcome) -> None:
        self.context.close_attempts(job)
        for stage in stages:
            self.context.note_end(stage.id, job, outcome)

    def adapted_spec(self, stage: Stage) -> StageSpec:
        """Return the stage's spec, with less memory for each time that a job of it ran out of memory."""
        spec = stage.spec(self.stages)
        for _ in range(self.shrunk[stage.folder]):
            assert isinstance(stage.settings, TrainSettings), f"{stage.id} cannot do with less memory"
            runtime = memory_fit.with_less_memory(spec.runtime, stage.settings, self.mean_edges(stage))
            spec = spec.model_copy(update={"runtime": runtime})
        return spec

    def mean_edges(self, stage: Stage) -> float:
        """Return the edges of a mean training structure."""
        folders = [self.context.root / self.stages[need].folder for need in stage.needs]
        counts = [files.read_model(folder / "card.json", ShardCard).counts["train"] for folder in folders]
        return sum(count.edges for count in counts) / max(1, sum(count.structures for count in counts))


def add_spare_nodes(request: Request, count: int, site: SiteConfig) -> Request:
    """Return the request with so many spare nodes, as far as its queue allows and a launcher can choose among them."""
    if site.launch.command == "none" or request.slots:
        return request
    most = site.queues[request.queue].nodes[1] - request.nodes
    return request._replace(nodes=request.nodes + max(0, min(count, most, MAX_SPARE_NODES)))


def backoff_pauses(first: float) -> Iterator[float]:
    """Yield pauses in seconds without end, each twice as long as the one before, up to a limit."""
    pause = first
    while True:
        yield pause
        pause = min(MAX_PAUSE_SECONDS, 2 * pause)


def die_at_failpoint(name: str) -> None:
    """Die as by `kill -9`, if a test requests it."""
    if os.environ.get("GNNSCALE_DIE_AT") == name:
        os.kill(os.getpid(), signal.SIGKILL)
