"""Every scheduler that there is."""

from __future__ import annotations

from workflow.scheduler.interface import Scheduler
from workflow.scheduler.pbs import PBSScheduler
from workflow.scheduler.slurm import SlurmScheduler

SCHEDULERS: dict[str, Scheduler] = {"slurm": SlurmScheduler(), "pbs": PBSScheduler()}
