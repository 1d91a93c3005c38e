"""The questions that every scheduler answers, and the way in which its commands are run; a failed query proves nothing."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

from gnnscale.contract.errors import reason_of
from gnnscale.contract.job_plan import AllocationPlan
from workflow.config.batch_scheduler import BatchScheduler
from workflow.scheduler.limits import SchedulerLimits
from workflow.scheduler.queue_facts import QueueFacts, SiteDraft
from workflow.scheduler.submission import SCRIPT_NAME, JobHead, Refusal, judge_refusal


class SchedulerUnreachable(Exception):
    """Failure of a query: the scheduler did not answer, so nothing is known, and nothing may be concluded."""


class JobStatus(NamedTuple):
    """Status of one job, as the scheduler reports it."""

    id: str
    name: str
    state: str  # PENDING, RUNNING, or how it ended; an unknown word counts as RUNNING, so that it ends no job
    reason: str = ""
    nodes: str = ""
    code: int | None = None
    is_hopeless: bool = False  # it waits for ever, whatever other jobs do

    @property
    def is_active(self) -> bool:
        return self.state in ("PENDING", "RUNNING")


class Snapshot(NamedTuple):
    """Status of the requested jobs that the scheduler knows. Jobs submitted after `began` may be missing."""

    began: float  # time.time() before the query was sent
    jobs: dict[str, JobStatus]
    unknown: frozenset[str] = frozenset()  # requested ids of which the scheduler says that it has no such job


class Rehearsal(NamedTuple):
    """Judgement of a scheduler about a script that it does not take."""

    accepted: bool
    printed: str
    start: tuple[str, str] | None  # day and hour, 2026-11-21 and 14:30, when it would begin


class Remark(NamedTuple):
    """Peculiarity of a scheduler that decides how jobs fare."""

    what: str
    said: str
    fix: str = ""  # "" = all is well
    is_certain: bool = True  # False: only a job shows whether it matters


class Scheduler(ABC):
    """One kind of scheduler. Every query gets a number of seconds in which it must be answered.

    A subclass is in a file of the name that `kind` has in a site's file. Its options are in workflow/config/schedulers/.
    """

    submit_command: ClassVar[str]  # its first word, for messages
    cancel_command: ClassVar[str]  # what a person types before the id of a job
    provider: ClassVar[str | None] = None  # class of parsl.providers that submits; None: `submit_script` alone does
    unwanted_lines: ClassVar[tuple[str, ...]] = ()  # beginnings of lines of that provider's template
    excludes_nodes: ClassVar[bool] = False  # whether a job can name nodes on which it must not run
    signals_jobs: ClassVar[bool] = False  # whether the scheduler itself announces the end of a job's time
    allocation: ClassVar[AllocationPlan]  # how a job learns its id and its hosts
    # Variables of a shell, or of the job in which the driver runs, override the script's own options, and jobs inherit them.
    # Only those are kept that locate the scheduler, identify the user, or hold a default that a site's modules give.
    option_variables: ClassVar[str] = ""  # regular expression
    kept_variables: ClassVar[frozenset[str]] = frozenset()

    # ------------------------------------------------------------------------------------------------------- our jobs
    @abstractmethod
    def find_by_id(self, ids: Iterable[str], seconds: float) -> Snapshot:
        """Return the status of these jobs."""

    @abstractmethod
    def find_by_name(self, names: set[str], seconds: float) -> list[JobStatus]:
        """Return our jobs of these names; ended ones too where the scheduler remembers them."""

    @abstractmethod
    def cancel(self, ids: list[str], seconds: float) -> None:
        """End these jobs; one that has ended already is no error."""

    # ------------------------------------------------------------------------------------------------------ submission
    @abstractmethod
    def render_options(self, head: JobHead, settings: BatchScheduler) -> list[str]:
        """Return the options in the head of the script, without the word before them, and without what `provider` adds."""

    def provider_options(self, head: JobHead, settings: BatchScheduler) -> dict[str, Any]:
        """Return arguments of Parsl's provider, besides nodes, walltime and the options above."""
        return {}

    def submit_script(self, folder: Path, seconds: float) -> subprocess.CompletedProcess[str]:
        """Submit SCRIPT_NAME, which lies in `folder`, from there."""
        return run_command([*self.submit_command.split(), SCRIPT_NAME], seconds, folder)

    def parse_job_id(self, printed: str) -> str | None:
        """Find the id of the job in what the submission printed."""
        found = re.search(r"\b\d+\S*", printed)
        return found[0] if found else None

    def judge_refusal(self, words: str, account: str | None) -> Refusal:
        """Judge what the failed submission printed."""
        return judge_refusal(words, account)

    def rehearse(self, script: Path, seconds: float) -> Rehearsal | None:
        """Let the scheduler judge a script without submitting it; None where it cannot."""
        return None

    # ----------------------------------------------------------------------------------------------------- the cluster
    @abstractmethod
    def read_release(self, seconds: float) -> str:
        """Return its name and version, after a query about jobs; raise if it does not answer."""

    @abstractmethod
    def read_limits(self, seconds: float) -> SchedulerLimits:
        """Return the limits of queues and accounts; raise if it does not even list its queues."""

    def find_remarks(self, seconds: float) -> list[Remark]:
        """Return what its server says about itself that users should know."""
        return []

    @abstractmethod
    def read_queues(self, seconds: float) -> list[QueueFacts]:
        """Return the queues that take jobs; raise if it does not answer."""

    @abstractmethod
    def draft(self, main: QueueFacts) -> SiteDraft:
        """Return the part of a new site's file that is about the scheduler; `main` is the queue for trainings."""


def run_command(
    command: list[str], seconds: float, cwd: Path | None = None, stdin: IO[bytes] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of a scheduler, without the variables that change its options."""
    kept = {name for each in Scheduler.__subclasses__() for name in each.kept_variables}
    dropped = [re.compile(each.option_variables) for each in Scheduler.__subclasses__() if each.option_variables]
    env = {n: value for n, value in os.environ.items() if n in kept or not any(each.match(n) for each in dropped)}
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            cwd=cwd,
            env=env,
            stdin=stdin or subprocess.DEVNULL,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise SchedulerUnreachable(f"{command[0]} has not answered for {seconds:.0f} s") from None
    except OSError as error:
        raise SchedulerUnreachable(f"{command[0]}: {reason_of(error)}") from None


def command_output(command: list[str], seconds: float) -> str:
    """Return what the command prints; raise if it fails."""
    done = run_command(command, seconds)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise SchedulerUnreachable(f"{command[0]}: {lines[-1]}")
    return done.stdout


def user_name() -> str:
    return getpass.getuser()
