"""Stages to Parsl futures: the only file, with executors.py, that imports Parsl."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import parsl
from parsl.dataflow.errors import DependencyError

from gnnscale.specs import StageResult
from workflow import executors
from workflow.plan import Stage
from workflow.processes import Failure, Interrupted, Processes, StageFailed
from workflow.sites import SiteConfig


@parsl.python_app
def perform(
    stage: Stage, processes: Processes, journal: Journal, inputs: list[StageResult], after: list[None]
) -> StageResult:
    """`inputs` arrive as the results of what this stage needs: Parsl calls this when all of them are there, and all that
    it comes `after` has ended, well or not."""
    journal.note("start", stage.id)
    return processes.run(stage)


class Journal:
    """events.jsonl: what happened, a line each, and the state of every stage for the screen."""

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        self.states: dict[str, str] = {}

    def note(self, event: str, stage: str = "", **facts: Any) -> None:
        names = {"start": "running", "found": "done", "done": "done", "failed": "failed", "blocked": "blocked"}
        if stage and event in names:
            self.states[stage] = names[event]
        line = json.dumps(
            {"time": round(time.time(), 3), "event": event, **({"stage": stage} if stage else {}), **facts}
        )
        try:
            with self.lock, open(self.path, "a") as file:
                file.write(line + "\n")
        except OSError:
            pass  # a full disk shows in the stages, where it can be told to the user


class Dag:
    """A study under way."""

    def __init__(self, stages: dict[str, Stage], site: SiteConfig, root: Path):
        self.stages = stages
        self.journal = Journal(root / "events.jsonl")
        self.processes = Processes(root, site, stages)
        self.failures: dict[str, Failure] = {}
        self.futures: dict[str, Future] = {}
        self.ended: dict[str, Future] = {id: Future() for id in stages}
        self.parsl_dir = root / ".parsl"
        memory = executors.Results(root, lambda stage: self.journal.note("found", stage.id))
        self.kernel = parsl.load(executors.config(site, root, memory))

    def submit(self) -> None:
        """Every stage at once; the edges are futures, so Parsl knows the whole graph."""
        self.journal.note("driver", pid=os.getpid(), stages=len(self.stages))
        for stage in self.stages.values():
            needs = [self.futures[need] for need in stage.needs]
            after = [self.ended[id] for id in stage.shorter]
            future = perform(stage, self.processes, self.journal, inputs=needs, after=after)
            self.futures[stage.id] = future
            future.add_done_callback(lambda future, stage=stage: self.finished(stage, future))

    def finished(self, stage: Stage, future: Future) -> None:
        error = future.exception()
        self.ended[stage.id].set_result(None)
        if error is None:
            if self.journal.states.get(stage.id) != "done":  # else it was found so
                self.journal.note("done", stage.id, seconds=round(future.result().seconds, 3))
        elif isinstance(error, DependencyError):
            self.journal.note("blocked", stage.id)
        elif isinstance(error, StageFailed):
            self.failures[stage.id] = error.failure
            self.journal.note("failed", stage.id, kind=error.failure.kind, message=error.failure.message)
        elif not isinstance(error, Interrupted):
            failure = Failure(stage.id, "application", f"{type(error).__name__}: {error}", "", ())
            self.failures[stage.id] = failure
            self.journal.note("failed", stage.id, kind="application", message=failure.message)

    @property
    def complete(self) -> bool:
        """Every stage has come to an end, and its end has been noted."""
        return all(self.journal.states.get(id) in ("done", "failed", "blocked") for id in self.stages)

    def stop(self) -> None:
        """Within two seconds: children first, then whatever Parsl has."""
        self.journal.note("stopping")
        self.processes.stop()

    def close(self) -> None:
        self.journal.note("end")
        closing = threading.Thread(target=self.kernel.cleanup, daemon=True)
        closing.start()
        closing.join(1.0)  # Parsl may wait for ever; there is nothing left that it should wait for
        shutil.rmtree(self.parsl_dir, ignore_errors=True)
