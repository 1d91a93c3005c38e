"""The plan as a graph of Parsl futures: every stage is submitted at once, and starts when what it needs is done."""

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
from workflow.execute.local_processes import LocalProcesses
from workflow.jobs.batch import BatchJobs
from workflow.jobs.requests import Request
from workflow.plan.stage import Stage
from workflow.run_directory.attempt import AttemptOutcome, StageUnfinished
from workflow.run_directory.journal import Journal

STATE_AFTER_EVENT = {
    "start": "running",
    "found": "done",
    "done": "done",
    "failed": "failed",
    "blocked": "blocked",
}  # events of the journal that change the state of a stage on the screen
SECONDS_TO_CLOSE = 1.0


def run_stage(
    stage: Stage,
    runner: LocalProcesses | BatchJobs,
    note: Callable[..., None],
    inputs: list[StageResult],
    after: list[None],
) -> StageResult:
    """Run one stage. Parsl calls this once it has the `inputs`, and once all stages of `after` have ended in any way."""
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
        self.banner = ""  # why all stages wait, if they do
        self.processes = LocalProcesses(root, site, stages)
        self.jobs: BatchJobs | None = None
        if site.has_scheduler:
            self.jobs = BatchJobs(root, site, site_name, stages, requests, self.journal, self.show, self.find_ready)
        self.failures: dict[str, AttemptOutcome] = {}
        self.futures: dict[str, Future[StageResult]] = {}
        self.ended: dict[str, Future[None]] = {id: Future() for id in stages}
        self.parsl_dir = root / ".parsl"
        memoizer = parsl_config.ResultMemoizer(root, self.note_found)
        self.kernel = parsl.load(parsl_config.make_config(site, len(requests), root, memoizer))
        self.run_locally = parsl.python_app(run_stage, executors=[parsl_config.LOCAL_EXECUTOR])
        self.run_as_job = parsl.python_app(run_stage, executors=[parsl_config.JOB_EXECUTOR])

    def note(self, event: str, stage: str = "", **facts: Any) -> None:
        """Append the event to the journal, and change the state of its stage."""
        if stage and event in STATE_AFTER_EVENT:
            is_queued = event == "start" and stage in self.requests
            self.states[stage] = "queued" if is_queued else STATE_AFTER_EVENT[event]
        self.journal.note(event, stage, **facts)

    def note_found(self, stage: Stage) -> None:
        """Note that the stage has a valid result already."""
        if self.jobs is not None:
            self.jobs.note_found(stage)
        self.note("found", stage.id)

    def show(self, stage: str, text: str) -> None:
        """Show the state of a stage's job; without a stage, why the scheduler does not answer."""
        if stage:
            self.states[stage] = text
        else:
            self.banner = f"since {time.strftime('%H:%M:%S')} the scheduler does not answer ({text})" if text else ""

    def find_ready(self) -> set[str]:
        """Return the stages for jobs that wait for no other stage and have not ended."""
        states = dict(self.states)
        return {
            id
            for id in self.requests
            if states.get(id) not in ("done", "failed", "blocked")
            and all(states.get(need) == "done" for need in self.stages[id].needs)
            and all(self.ended[other].done() for other in self.stages[id].shorter)
        }

    def submit(self) -> None:
        """Submit every stage at once; the edges are futures, so Parsl knows the whole graph."""
        self.note("driver", pid=os.getpid(), stages=len(self.stages))
        for stage in self.stages.values():
            needs = [self.futures[need] for need in stage.needs]
            after = [self.ended[id] for id in stage.shorter]
            is_job = stage.id in self.requests
            app, runner = (self.run_as_job, self.jobs) if is_job else (self.run_locally, self.processes)
            future = app(stage, runner, self.note, inputs=needs, after=after)
            self.futures[stage.id] = future
            future.add_done_callback(lambda future, stage=stage: self.note_end(stage, future))

    def note_end(self, stage: Stage, future: Future[StageResult]) -> None:
        """Note how the stage ended, and let the stages after it start."""
        error = future.exception()
        outcome = failed_outcome(error)
        if outcome is not None and outcome.kind == "interrupted":
            return  # `ended` stays open, or Parsl would start the stages after it on its way out
        self.ended[stage.id].set_result(None)
        if error is None:
            if self.states.get(stage.id) != "done":  # else the memoizer has noted it
                self.note("done", stage.id, seconds=round(future.result().seconds, 3))
        elif outcome is None:
            self.note("blocked", stage.id)
        else:
            self.failures[stage.id] = outcome
            self.note("failed", stage.id, kind=outcome.kind, message=outcome.message)

    @property
    def is_complete(self) -> bool:
        """Tell whether every stage has ended, and its end has been noted."""
        return all(self.states.get(id) in ("done", "failed", "blocked") for id in self.stages)

    def jobs_left_running(self) -> int:
        return self.jobs.jobs_left_running() if self.jobs is not None else 0

    def stop(self) -> None:
        """Stop within two seconds: local processes first, then Parsl. Batch jobs keep running."""
        self.note("stopping")
        if self.jobs is not None:
            self.jobs.stop()
        self.processes.stop()

    def close(self) -> None:
        self.note("end")
        self.processes.close()
        # Parsl tries to start what comes after an interrupted stage, and logs tracebacks of the attempts.
        logging.getLogger("concurrent.futures").disabled = True
        closing = threading.Thread(target=self.kernel.cleanup, daemon=True)
        closing.start()
        closing.join(SECONDS_TO_CLOSE)  # Parsl may wait for ever, and there is nothing left to wait for
        shutil.rmtree(self.parsl_dir, ignore_errors=True)


def failed_outcome(error: BaseException | None) -> AttemptOutcome | None:
    """Return the outcome of a stage that was tried and has no result; None if it is done, or was blocked by another."""
    if error is None or isinstance(error, DependencyError):
        return None
    if isinstance(error, StageUnfinished):
        return error.outcome
    return AttemptOutcome("application", f"{type(error).__name__}: {error}")
