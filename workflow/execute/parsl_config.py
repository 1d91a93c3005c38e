"""Parsl's configuration for a site, with result.json in the place of Parsl's own memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from parsl.config import Config
from parsl.dataflow.memoization import Memoizer
from parsl.dataflow.taskrecord import TaskRecord
from parsl.executors import ThreadPoolExecutor

from gnnscale.contract import files
from gnnscale.contract.results import StageResult
from workflow.config.site import SiteConfig
from workflow.plan.stage import Stage

LOCAL_EXECUTOR, JOB_EXECUTOR = "here", "jobs"
MAX_LOGIN_STAGES = 2  # at a time: the driver's host is shared with everybody
MAX_FOLLOWED_JOBS = 1000  # at a time; a thread that waits costs some tens of kB


class ResultMemoizer(Memoizer):
    """Memoizer that runs no stage again whose result is valid for the inputs that it has now.

    Parsl's own check-point file ignores changed code and deleted outputs, and a torn one stops it.
    """

    def __init__(self, root: Path, on_found: Callable[[Stage], None]):
        self.root, self.on_found = root, on_found

    def check_memo(self, task: TaskRecord) -> Future[StageResult] | None:
        stage: Stage = task["args"][0]
        inputs: list[StageResult] = task["kwargs"]["inputs"]
        result = files.verify(self.root / stage.folder, stage.key).result
        if result is None or result.inputs != {need.id: need.digest for need in inputs}:
            return None
        self.on_found(stage)
        found: Future[StageResult] = Future()
        found.set_result(result)
        return found

    def update_memo_result(self, task: TaskRecord, r: Any) -> None:
        """Do nothing: the stage wrote its result itself."""

    def update_memo_exception(self, task: TaskRecord, e: BaseException) -> None:
        """Do nothing: the next run tries a failed stage again."""

    def start(self, *, run_dir: str, config_run_dir: str) -> None:
        """Do nothing: the directories of the stages are the memory."""

    def close(self) -> None:
        """Do nothing: no file is open."""


def make_config(site: SiteConfig, jobs: int, root: Path, memoizer: Memoizer) -> Config:
    """Return a configuration of threads, each of which waits for the process or for the job of one stage."""
    side_by_side = min(MAX_LOGIN_STAGES, site.cores) if site.has_scheduler else site.parallel_stages
    executors = [ThreadPoolExecutor(label=LOCAL_EXECUTOR, max_threads=side_by_side)]
    if site.has_scheduler:
        executors.append(ThreadPoolExecutor(label=JOB_EXECUTOR, max_threads=max(1, min(jobs, MAX_FOLLOWED_JOBS))))
    return Config(
        executors=executors,
        memoizer=memoizer,
        strategy="none",
        run_dir=str(root / ".parsl"),
        initialize_logging=False,
        usage_tracking=0,
    )
