"""The questions that every scheduler answers, and the way in which its commands are run; a failed query proves nothing."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract.errors import reason_of
from workflow.scheduler.limits import SchedulerLimits

# Variables of a shell, or of the job in which the driver runs, override the script's own options, and jobs inherit them. Only
# those are kept that locate the scheduler, identify the user, or hold the default that a site's modules give to its srun.
OPTION_VARIABLES = re.compile("(SLURM|SBATCH|SRUN|SQUEUE|SACCT|SCANCEL|PBS)_")
KEPT_VARIABLES = {
    "SLURM_CONF",
    "SLURM_CONF_SERVER",
    "SLURM_JWT",
    "SLURM_CLUSTERS",
    "SLURM_MPI_TYPE",
    "PBS_CONF_FILE",
    "PBS_EXEC",
    "PBS_HOME",
    "PBS_SERVER",
    "PBS_DEFAULT",
    "PBS_PRIMARY",
    "PBS_SECONDARY",
    "PBS_AUTH_METHOD",
    "PBS_ENCRYPT_METHOD",
}


class SchedulerUnreachable(Exception):
    """Failure of a query: the scheduler did not answer, so nothing is known, and nothing may be concluded."""


class JobStatus(NamedTuple):
    """Status of one job, as the scheduler reports it."""

    id: str
    name: str
    state: (
        str  # PENDING, RUNNING, or how it ended; a word that is unknown here counts as RUNNING, so that it ends no job
    )
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


class Scheduler(ABC):
    """One kind of scheduler. Every query gets a number of seconds in which it must be answered."""

    @abstractmethod
    def find_by_id(self, ids: Iterable[str], seconds: float) -> Snapshot:
        """Return the status of these jobs."""

    @abstractmethod
    def find_by_name(self, names: set[str], seconds: float) -> list[JobStatus]:
        """Return our jobs of these names; ended ones too where the scheduler remembers them."""

    @abstractmethod
    def cancel(self, ids: list[str], seconds: float) -> None:
        """End these jobs; one that has ended already is no error."""

    @abstractmethod
    def signal(self, id: str, name: str, seconds: float) -> None:
        """Send a signal, named without SIG, to the script of a job."""

    @abstractmethod
    def read_limits(self, seconds: float) -> SchedulerLimits:
        """Return the limits of queues and accounts; raise if it does not even list its queues."""


def run_command(command: list[str], seconds: float, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of the scheduler, without the variables that change its options."""
    env = {
        name: value for name, value in os.environ.items() if name in KEPT_VARIABLES or not OPTION_VARIABLES.match(name)
    }
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
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
