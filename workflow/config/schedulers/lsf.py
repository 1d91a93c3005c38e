"""Options of a site with LSF."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from workflow.config.batch_scheduler import BatchScheduler

DECIDED_ELSEWHERE = {
    "-P": "account:",
    "-q": "queues.NAME.partition",
    "-W": "the planner's estimate and queues.NAME.max_walltime",
    "-n": "train.nodes and node.cores",
    "-nnodes": "train.nodes",
    "-x": "scheduler.exclusive",
    "-J": "the driver",
    "-o": "the driver",
    "-oo": "the driver",
    "-e": "the driver",
    "-eo": "the driver",
    "-cwd": "the driver",
    "-r": "the driver",
    "-rn": "the driver",
    "-w": "the driver",
    "-wa": "scheduler.signal_seconds",
    "-wt": "scheduler.signal_seconds",
    "-I": "the driver",
    "-Is": "the driver",
    "-K": "the driver",
    "-H": "the driver",
}


class LSF(BatchScheduler):
    """IBM Spectrum LSF: bsub, bjobs and bkill."""

    title: ClassVar = "LSF"
    directive_word: ClassVar = "#BSUB"
    decided_elsewhere: ClassVar = DECIDED_ELSEWHERE

    kind: Literal["lsf"]
    exclusive: bool = Field(True, description="true = whole hosts (-x)")
