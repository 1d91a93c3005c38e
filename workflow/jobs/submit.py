"""Jobs on their way to the scheduler: written down before and after, found again by name, and never submitted twice."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator

from gnnscale.contract import files
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.contract.stage_spec import StageSpec
from workflow.jobs import launch, parsl_provider
from workflow.jobs.outcome import Outcome
from workflow.jobs.requests import Request
from workflow.jobs.run_context import Office
from workflow.plan import memory_fit
from workflow.plan.stage import Stage
from workflow.run_directory.attempt import Failure, StageFailed, prepare
from workflow.run_directory.journal import Known, name_of, read
from workflow.scheduler import query
from workflow.scheduler.query import Seen

MOST_AVOIDED = 16  # nodes; the last that failed


class Submission:
    """Submits, with what earlier jobs have taught: nodes to avoid, trainings that need less memory."""

    def __init__(self, office: Office, stages: dict[str, Stage]):
        self.office, self.stages = office, stages
        self.avoid: tuple[str, ...] = ()
        self.shrunk = Counter(
            e["folder"] for e in read(office.log.path) if e["event"] == "ended" and e["kind"] == "memory"
        )

    def avoid_also(self, hosts: tuple[str, ...]) -> None:
        self.avoid = tuple(dict.fromkeys((*self.avoid, *hosts)))[-MOST_AVOIDED:]

    def find(self, name: str) -> Seen | None:
        """A job by its name; asked until the scheduler answers."""
        office = self.office
        for pause in pauses(office.site.scheduler.poll_seconds):
            office.check()
            try:
                with office.submitting:
                    jobs = office.scheduler.named({name}, office.site.scheduler.command_timeout)
            except query.Unreachable as error:
                office.away(str(error))
                office.sleep(pause)
                continue
            office.away("")
            return next((job for job in jobs if job.active), jobs[-1] if jobs else None)

    def submit(self, request: Request) -> Known:
        """All that the request names. May take long: until the scheduler is there, and has room."""
        office, stages = self.office, [self.stages[id] for id in request.all]
        attempts = []
        for stage in stages:
            made = prepare(office.root / stage.folder, self.spec(stage), launch.script(stage, office.site, office.root))
            attempts.append(launch.Attempt(stage.id, stage.kind, office.root / stage.folder, int(made.name)))
        places = {stage.id: (stage.folder, each.number) for stage, each in zip(stages, attempts)}
        name = name_of(office.root, [stage.key for stage in stages], attempts[0].number)
        job, there = Known(name, str(office.root), office.site_name, places), attempts[0]
        asked = parsl_provider.Job(
            request,
            name,
            there.folder / "attempts" / str(there.number),
            launch.batch(request, attempts, office.site),
            self.avoid,
        )
        office.log.note("intend", name=name, root=job.root, site=job.site, stages=places, durable=True)
        job = job._replace(id=self.taken(asked, job, stages))
        try:
            office.log.note("submit", name=name, job=job.id, durable=True)
        except OSError:
            pass  # the disk is full; the next driver finds the job by its name
        office.tell(stages, Seen(job.id, name, "PENDING"))
        return job

    def taken(self, asked: parsl_provider.Job, job: Known, stages: list[Stage]) -> str:
        """The id, once the scheduler has taken it."""
        office = self.office
        for pause in pauses(office.site.scheduler.poll_seconds):
            office.check()
            id = None
            try:
                failpoint("before-submit")
                with office.submitting:
                    id = parsl_provider.submit(asked, office.site)
                failpoint("after-submit")
            except parsl_provider.Refused as error:
                if asked.avoid:  # too few nodes may be left without them
                    self.avoid, asked = (), asked._replace(avoid=())
                    continue
                office.close(job)
                for stage in stages:
                    office.note_end(stage.id, job, Outcome("configuration", str(error)))
                raise StageFailed(Failure(stages[0].id, "configuration", str(error), error.hint, ())) from None
            except parsl_provider.Limit as error:
                office.tell(stages, Seen("", job.name, "PENDING", str(error)))
                office.sleep(pause)
            except query.Unreachable as error:
                office.away(str(error))
                office.sleep(pause)
                found = self.find(job.name)  # only the answer may have been lost
                id = found.id if found else None
            if id is not None:
                office.away("")
                return id

    def spec(self, stage: Stage) -> StageSpec:
        """With the memory that it has been found to need."""
        spec = stage.spec(self.stages)
        for _ in range(self.shrunk[stage.folder]):
            spec = spec.model_copy(
                update={"runtime": memory_fit.smaller(spec.runtime, stage.settings, self.edges(stage))}
            )
        return spec

    def edges(self, stage: Stage) -> float:
        """Of a mean training structure."""
        folders = [self.office.root / self.stages[need].folder for need in stage.needs]
        counts = [files.read_model(folder / "card.json", ShardCard).counts["train"] for folder in folders]
        return sum(count.edges for count in counts) / max(1, sum(count.structures for count in counts))


def pauses(first: float) -> Iterator[float]:
    pause = first
    while True:
        yield pause
        pause = min(300.0, 2 * pause)


def failpoint(name: str) -> None:
    """For the tests: die here, as by kill -9."""
    if os.environ.get("GNNSCALE_DIE_AT") == name:
        os.kill(os.getpid(), signal.SIGKILL)
