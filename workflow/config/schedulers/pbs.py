"""Options of a site with PBS."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from workflow.config.batch_scheduler import BatchScheduler

# Which of two values PBS takes is undefined.
DECIDED_ELSEWHERE = {
    "-A": "account:",
    "-q": "queues.NAME.partition",
    "-N": "the driver",
    "-o": "the driver",
    "-e": "the driver",
    "-j": "the driver",
    "-J": "the driver",
    "-r": "the driver",
    "-W umask": "the driver, which has the same one",
    "-W depend": "the driver",
    "-W block": "the driver",
    "-W stagein": "the driver",
    "-W stageout": "the driver",
    "-z": "the driver",
    "-I": "the driver",
    "-h": "the driver",
    "-l walltime": "the planner's estimate and queues.NAME.max_walltime",
    "-l select": "scheduler.select and train.nodes",
    "-l nodes": "train.nodes",
    "-l ncpus": "node.cores",
}


class PBS(BatchScheduler):
    """PBS Professional or OpenPBS: qsub and qstat."""

    title: ClassVar = "PBS"
    directive_word: ClassVar = "#PBS"
    decided_elsewhere: ClassVar = DECIDED_ELSEWHERE

    kind: Literal["pbs"]
    select: str = Field("", description="added to each chunk after select=N:ncpus=C, for example system=polaris")

    @classmethod
    def option_name(cls, text: str) -> str:
        name = re.match(r"(-[lW])\s*(\w+)", text.strip())
        return f"{name[1]} {name[2]}" if name else text.strip()[:2]
