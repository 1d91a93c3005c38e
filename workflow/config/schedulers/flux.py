"""Options of a site with Flux."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from workflow.config.batch_scheduler import BatchScheduler, RankLauncher

DECIDED_ELSEWHERE = {
    "--nodes": "train.nodes",
    "--nslots": "launch.ranks_per_node",
    "--cores-per-slot": "launch.threads_per_rank",
    "--exclusive": "scheduler.exclusive",
    "--time-limit": "the planner's estimate and queues.NAME.max_walltime",
    "--queue": "queues.NAME.partition",
    "--bank": "account:",
    "--requires": "the driver, when a node fails",
    "--job-name": "the driver",
    "--output": "the driver",
    "--error": "the driver",
    "--cwd": "the driver",
    "--signal": "scheduler.signal_seconds",
    "--dependency": "the driver",
    "--wrap": "the driver",
    "--dry-run": "the driver",
}
LONG_OPTIONS = {
    "-N": "--nodes",
    "-n": "--nslots",
    "-c": "--cores-per-slot",
    "-x": "--exclusive",
    "-t": "--time-limit",
    "-q": "--queue",
    "-B": "--bank",
    "-g": "--gpus-per-slot",
}


class Flux(BatchScheduler):
    """Flux: flux batch, flux jobs and flux cancel."""

    title: ClassVar = "Flux"
    directive_word: ClassVar = "#FLUX:"
    decided_elsewhere: ClassVar = DECIDED_ELSEWHERE
    # `flux run` ends at a signal instead of passing it on to its ranks.
    launchers: ClassVar = {
        "flux": RankLauncher(
            ("--requires=hosts:{hosts}",),
            rank_variables=("FLUX_TASK_RANK", "FLUX_TASK_LOCAL_ID", "FLUX_JOB_SIZE"),
            forwards_signals=False,
        )
    }

    kind: Literal["flux"]
    exclusive: bool = Field(True, description="true = whole nodes; false = as many cores as the ranks of a job take")

    @classmethod
    def option_name(cls, text: str) -> str:
        word = super().option_name(text)
        return word if word.startswith("--") else LONG_OPTIONS.get(word[:2], word[:2])
