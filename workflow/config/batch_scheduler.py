"""Options that all schedulers have in common, and the facts about one that the rules of site files need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from pydantic import Field

from gnnscale.schema import Record


class RankLauncher(NamedTuple):
    """A launcher that belongs to one scheduler."""

    hosts: tuple[str, ...]  # options that place it on {hosts}, a list of names with commas
    rank_variables: tuple[str, str, str] | None = None  # of rank, local rank and size; None: as a common launcher's
    forwards_signals: bool = True  # to its ranks; otherwise they are told by files


class BatchScheduler(Record):
    """Options that all schedulers have in common. A subclass is one kind, in a file of its name in `schedulers`."""

    title: ClassVar[str]
    directive_word: ClassVar[str]  # before an option in the head of a job's script
    decided_elsewhere: ClassVar[Mapping[str, str]]  # option that this project sets for each job -> by which field
    launchers: ClassVar[Mapping[str, RankLauncher]] = {}
    has_qos: ClassVar[bool] = False

    kind: str
    directives: tuple[str, ...] = Field(
        (), description="options of every job, written as in a job script but without #SBATCH, #PBS or the like"
    )
    poll_seconds: float = Field(30.0, gt=0, description="seconds between two queries for all jobs")
    command_timeout: float = Field(
        120.0, gt=0, description="seconds after which a command of the scheduler is given up"
    )
    signal_seconds: int = Field(
        300, ge=10, description="seconds before its walltime at which a job is signalled to save its work"
    )
    max_jobs: int = Field(50, ge=1, description="most jobs of this driver, waiting or running, at any time")
    stall_seconds: float = Field(
        1800.0, gt=0, description="a training that shows no progress for so many seconds is ended"
    )
    late_seconds: float = Field(
        60.0, ge=0, description="seconds by which files written on other nodes may appear late here"
    )
    exclude_nodes: bool = Field(
        True,
        description="true = jobs avoid nodes that failed; PBS cannot leave nodes out, so jobs ask for spare ones instead",
    )
    forbidden: dict[str, str] = Field(
        default_factory=dict, description="option -> why this site refuses jobs that use it"
    )

    @classmethod
    def option_name(cls, text: str) -> str:
        """Return the name of an option in the form of `decided_elsewhere`, however it was written."""
        return re.split(r"[=\s]", text.strip(), maxsplit=1)[0]
