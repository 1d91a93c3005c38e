"""The plan of a batch job, which workflow/jobs/launch.py writes and gnnscale/job/batch_job.py carries out."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class StagePlan(TypedDict):
    """One stage of a batch job."""

    folder: str
    number: int  # of the attempt
    first: int  # index of its first host among the job's
    nodes: int
    per_node: int  # ranks
    command: str  # of its launcher; {hosts} stands for the names of its hosts
    check: str | None  # command that checks the nodes before; None = no check
    after: int | None  # index of the stage in the job that must have succeeded before
    by_file: NotRequired[bool]  # signals are forwarded as files, as into a container


class AllocationPlan(TypedDict):
    """Commands by which a job learns what it was given, with $NAME for a variable of its environment."""

    id: list[str]  # prints the id of the job
    hosts: list[str]  # prints the names of its hosts, in which one may occur again for each rank


class JobPlan(TypedDict):
    """All stages of a batch job, and how they share its nodes."""

    allocation: AllocationPlan
    interface: str | None  # network in which ranks meet; None = that of the host name
    seconds: int | None  # until the job must stop its ranks; None = the scheduler signals it
    slots: int | None  # stages that run at a time; None = all
    gpus: tuple[str, int] | None  # variable that shows GPUs to a stage, and how many to share out
    stages: list[StagePlan]
    avoid: NotRequired[list[str]]  # hosts that failed before, where the scheduler may give them again
