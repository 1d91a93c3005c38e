"""Stages to Parsl futures."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import parsl
from parsl.dataflow.errors import DependencyError

from gnnscale.contract.results import StageResult
from workflow.config.site import SiteConfig
from workflow.execute import parsl_config
from workflow.execute.local_processes import Processes
from workflow.jobs.batch import Jobs
from workflow.jobs.requests import Request
from workflow.plan.stage import Stage
from workflow.run_directory.attempt import Failure, Interrupted, StageFailed
from workflow.run_directory.journal import Journal


def perform(
    stage: Stage, runner: Processes | Jobs, note: Callable[..., None], inputs: list[StageResult], after: list[None]
) -> StageResult:
    """`inputs` arrive as the results of what this stage needs: Parsl calls this when all of them are there, and all that
    it comes `after` has ended, well or not."""
    note("start", stage.id)
    return runner.run(stage)


class Dag:
    """A study under way, and the state of every stage for the screen."""

    def __init__(
        self, stages: dict[str, Stage], site: SiteConfig, site_name: str, root: Path, requests: dict[str, Request]
    ):
        self.stages, self.requests = stages, requests
        self.journal = Journal(root / "events.jsonl")
        self.states: dict[str, str] = {}
        self.banner = ""  # what keeps all stages waiting, if anything does
        self.processes = Processes(root, site, stages)
        self.jobs: Jobs | None = None
        if site.batch:
            self.jobs = Jobs(root, site, site_name, stages, requests, self.journal, self.say, self.ready)
        self.failures: dict[str, Failure] = {}
        self.futures: dict[str, Future] = {}
        self.ended: dict[str, Future] = {id: Future() for id in stages}
        self.parsl_dir = root / ".parsl"
        memory = parsl_config.Results(root, self.found)
        self.kernel = parsl.load(parsl_config.config(site, len(requests), root, memory))
        self.here = parsl.python_app(perform, executors=[parsl_config.HERE])
        self.there = parsl.python_app(perform, executors=[parsl_config.JOBS])

    def note(self, event: str, stage: str = "", **facts: Any) -> None:
        names = {"start": "running", "found": "done", "done": "done", "failed": "failed", "blocked": "blocked"}
        if event == "start" and stage in self.requests:
            names["start"] = "queued"
        if stage and event in names:
            self.states[stage] = names[event]
        self.journal.note(event, stage, **facts)

    def found(self, stage: Stage) -> None:
        """It has a valid result already."""
        if self.jobs is not None:
            self.jobs.found(stage)
        self.note("found", stage.id)

    def say(self, stage: str, what: str) -> None:
        """Of a job: its state; without a stage, why none of them gets on."""
        if stage:
            self.states[stage] = what
        else:
            self.banner = f"since {time.strftime('%H:%M:%S')} the scheduler does not answer ({what})" if what else ""

    def ready(self) -> set[str]:
        """Give the stages for jobs that wait for no other stage, and have not ended."""
        states = dict(self.states)
        return {
            id
            for id in self.requests
            if states.get(id) not in ("done", "failed", "blocked")
            and all(states.get(need) == "done" for need in self.stages[id].needs)
            and all(self.ended[other].done() for other in self.stages[id].shorter)
        }

    def submit(self) -> None:
        """Every stage at once; the edges are futures, so Parsl knows the whole graph."""
        self.note("driver", pid=os.getpid(), stages=len(self.stages))
        for stage in self.stages.values():
            needs = [self.futures[need] for need in stage.needs]
            after = [self.ended[id] for id in stage.shorter]
            app, runner = (self.there, self.jobs) if stage.id in self.requests else (self.here, self.processes)
            future = app(stage, runner, self.note, inputs=needs, after=after)
            self.futures[stage.id] = future
            future.add_done_callback(lambda future, stage=stage: self.finished(stage, future))

    def finished(self, stage: Stage, future: Future) -> None:
        error = future.exception()
        if not isinstance(error, Interrupted):  # else Parsl would start, on its way out, what comes after
            self.ended[stage.id].set_result(None)
        if error is None:
            if self.states.get(stage.id) != "done":  # else it was found so
                self.note("done", stage.id, seconds=round(future.result().seconds, 3))
        elif isinstance(error, DependencyError):
            self.note("blocked", stage.id)
        elif isinstance(error, StageFailed):
            self.failures[stage.id] = error.failure
            self.note("failed", stage.id, kind=error.failure.kind, message=error.failure.message)
        elif not isinstance(error, Interrupted):
            failure = Failure(stage.id, "application", f"{type(error).__name__}: {error}", "", ())
            self.failures[stage.id] = failure
            self.note("failed", stage.id, kind="application", message=failure.message)

    @property
    def complete(self) -> bool:
        """Every stage has come to an end, and its end has been noted."""
        return all(self.states.get(id) in ("done", "failed", "blocked") for id in self.stages)

    def stop(self) -> None:
        """Within two seconds: children first, then whatever Parsl has. Jobs go on."""
        self.note("stopping")
        if self.jobs is not None:
            self.jobs.stop()
        self.processes.stop()

    def close(self) -> None:
        self.note("end")
        # Parsl starts what comes after a stage that was interrupted, or tries to: of that nobody wants to read.
        logging.getLogger("concurrent.futures").disabled = True
        closing = threading.Thread(target=self.kernel.cleanup, daemon=True)
        closing.start()
        closing.join(1.0)  # Parsl may wait for ever; there is nothing left that it should wait for
        shutil.rmtree(self.parsl_dir, ignore_errors=True)
