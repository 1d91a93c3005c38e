"""A site to Parsl's configuration, and Parsl's memory replaced by result.json."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from parsl.config import Config
from parsl.dataflow.memoization import Memoizer
from parsl.executors import ThreadPoolExecutor

from gnnscale.contract import files
from gnnscale.contract.results import StageResult
from workflow.config.site import SiteConfig
from workflow.plan.stage import Stage

HERE, JOBS = "here", "jobs"
LOGIN_STAGES = 2  # at a time: the driver's host is shared with everybody
MOST_JOBS = 1000  # followed at a time; a thread that waits costs some tens of kB


class Results(Memoizer):
    """A stage whose result is valid, for the inputs that it has now, is not run again.

    Parsl's own check-point file ignores changed code and deleted outputs, and a torn one stops it.
    """

    def __init__(self, root: Path, on_found: Any):
        self.root, self.on_found = root, on_found

    def check_memo(self, task: dict) -> Future | None:
        stage: Stage = task["args"][0]
        inputs: list[StageResult] = task["kwargs"]["inputs"]
        result = files.verify(self.root / stage.folder, stage.key).result
        if result is None or result.inputs != {need.id: need.digest for need in inputs}:
            return None
        self.on_found(stage)
        found: Future = Future()
        found.set_result(result)
        return found

    def update_memo_result(self, task: dict, r: Any) -> None:
        """The stage wrote it itself."""

    def update_memo_exception(self, task: dict, e: BaseException) -> None:
        """A failure is tried again by the next run."""

    def start(self, *, run_dir: str, config_run_dir: str) -> None:
        """Nothing is kept but the stages' directories."""

    def close(self) -> None:
        """Nothing is open."""


def config(site: SiteConfig, jobs: int, root: Path, memoizer: Memoizer) -> Config:
    """Threads of the driver, each of which waits for the process of one stage, or for its job."""
    side_by_side = min(LOGIN_STAGES, site.cores) if site.batch else site.parallel_stages
    executors = [ThreadPoolExecutor(label=HERE, max_threads=side_by_side)]
    if site.batch:
        executors.append(ThreadPoolExecutor(label=JOBS, max_threads=max(1, min(jobs, MOST_JOBS))))
    return Config(
        executors=executors,
        memoizer=memoizer,
        strategy="none",
        run_dir=str(root / ".parsl"),
        initialize_logging=False,
        usage_tracking=0,
    )
