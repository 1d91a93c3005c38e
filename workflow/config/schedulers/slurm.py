"""Options of a site with Slurm."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from workflow.config.batch_scheduler import BatchScheduler, RankLauncher

# Which of two values Slurm takes is undefined.
DECIDED_ELSEWHERE = {
    "--account": "account:",
    "--partition": "queues.NAME.partition",
    "--qos": "queues.NAME.qos",
    "--time": "the planner's estimate and queues.NAME.max_walltime",
    "--nodes": "train.nodes",
    "--ntasks": "launch.ranks_per_node",
    "--ntasks-per-node": "launch.ranks_per_node",
    "--job-name": "the driver",
    "--output": "the driver",
    "--error": "the driver",
    "--open-mode": "the driver",
    "--chdir": "the driver",
    "--signal": "scheduler.signal_seconds",
    "--exclusive": "scheduler.exclusive",
    "--requeue": "the driver",
    "--no-requeue": "the driver",
    "--array": "the driver",
    "--dependency": "the driver",
    "--wait": "the driver",
    "--cpus-per-task": "launch.threads_per_rank",
    "--exclude": "the driver, when a node fails",
    "--comment": "the driver",
    "--wrap": "the driver",
    "--parsable": "the driver",
    "--quiet": "the driver",
    "--test-only": "the driver",
    "--hold": "the driver",
}
LONG_OPTIONS = {
    "-A": "--account",
    "-p": "--partition",
    "-q": "--qos",
    "-t": "--time",
    "-N": "--nodes",
    "-n": "--ntasks",
    "-J": "--job-name",
    "-o": "--output",
    "-e": "--error",
    "-D": "--chdir",
    "-a": "--array",
    "-d": "--dependency",
    "-W": "--wait",
    "-x": "--exclude",
    "-w": "--nodelist",
    "-C": "--constraint",
    "-c": "--cpus-per-task",
    "-G": "--gpus",
    "-Q": "--quiet",
    "-H": "--hold",
    "-L": "--licenses",
    "-M": "--clusters",
    "-F": "--nodefile",
}


class Slurm(BatchScheduler):
    """Slurm: sbatch, squeue and sacct."""

    title: ClassVar = "Slurm"
    directive_word: ClassVar = "#SBATCH"
    decided_elsewhere: ClassVar = DECIDED_ELSEWHERE
    launchers: ClassVar = {"srun": RankLauncher(("--nodelist={hosts}",)), "ibrun": RankLauncher(("--hosts", "{hosts}"))}
    has_qos: ClassVar = True

    kind: Literal["slurm"]
    exclusive: bool = Field(
        True, description="true = whole nodes; false where nodes are shared: then request a share in directives"
    )

    @classmethod
    def option_name(cls, text: str) -> str:
        word = re.split(r"[=\s]", text.strip(), maxsplit=1)[0]
        return word if word.startswith("--") else LONG_OPTIONS.get(word[:2], word[:2])
