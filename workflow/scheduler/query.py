"""Queries to Slurm and PBS about our jobs: one for all of them, parsed defensively; from a failed one nothing follows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gnnscale.contract.errors import reason_of

# Active states are PENDING and RUNNING. A word that is unknown here counts as active, so that it ends no job.
SLURM_STATES = {
    "PENDING": "PENDING",
    "CONFIGURING": "PENDING",
    "REQUEUED": "PENDING",
    "REQUEUE_HOLD": "PENDING",
    "REQUEUE_FED": "PENDING",
    "RESV_DEL_HOLD": "PENDING",
    "SPECIAL_EXIT": "PENDING",
    "RUNNING": "RUNNING",
    "COMPLETING": "RUNNING",
    "STAGE_OUT": "RUNNING",
    "SIGNALING": "RUNNING",
    "STOPPED": "RUNNING",
    "SUSPENDED": "RUNNING",
    "RESIZING": "RUNNING",
    "COMPLETED": "COMPLETED",
    "FAILED": "FAILED",
    "CANCELLED": "CANCELLED",
    "REVOKED": "CANCELLED",
    "TIMEOUT": "TIMEOUT",
    "DEADLINE": "TIMEOUT",
    "PREEMPTED": "PREEMPTED",
    "OUT_OF_MEMORY": "OUT_OF_MEMORY",
    "NODE_FAIL": "NODE_FAIL",
    "BOOT_FAIL": "NODE_FAIL",
}
PBS_STATES = {
    "R": "RUNNING",
    "E": "RUNNING",
    "B": "RUNNING",
    "S": "RUNNING",
    "U": "RUNNING",
    "Q": "PENDING",
    "T": "PENDING",
    "W": "PENDING",
    "H": "PENDING",
    "M": "PENDING",
}
PBS_WALLTIME_EXIT = -29  # Exit_status of a job that was ended at its limit
# Reasons for which a job waits for ever, whatever other jobs do.
HOPELESS_REASONS = {
    "PartitionTimeLimit",
    "PartitionNodeLimit",
    "PartitionConfig",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "AssocMaxWallDurationPerJobLimit",
    "QOSMaxWallDurationPerJobLimit",
    "AssocMaxNodePerJobLimit",
    "QOSMaxNodePerJobLimit",
    "DependencyNeverSatisfied",
}
# Variables of a shell, or of the job in which the driver runs, override the script's own options, and jobs inherit them. Kept
# are those that say where the scheduler is, who asks, and what a site's modules make the default of its srun.
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
    state: str  # PENDING, RUNNING, or how it ended
    reason: str = ""
    nodes: str = ""
    code: int | None = None

    @property
    def is_active(self) -> bool:
        return self.state in ("PENDING", "RUNNING")

    @property
    def is_hopeless(self) -> bool:
        return self.state == "PENDING" and self.reason in HOPELESS_REASONS


class Snapshot(NamedTuple):
    """Status of all jobs that were asked for and are known. Jobs submitted after `began` may be missing."""

    began: float  # time.time() before the query was sent
    jobs: dict[str, JobStatus]


class Scheduler(NamedTuple):
    """Commands of one kind of scheduler; each has a number of seconds in which it must answer."""

    find_by_id: Callable[[Iterable[str], float], Snapshot]
    find_by_name: Callable[[set[str], float], list[JobStatus]]  # our jobs; ended ones too where it remembers them
    cancel: Callable[[list[str], float], None]
    signal: Callable[[str, str, float], None]  # (id, name without SIG, seconds): sent to the job's script


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


# ------------------------------------------------------------------------------------------------------------ Slurm
SQUEUE_COMMAND = ["squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%r|%N|%j"]
SACCT_COMMAND = [
    "sacct",
    "--allocations",
    "--noheader",
    "--parsable2",
    "--format=JobID,State,Reason,ExitCode,NodeList,JobName",
]


def slurm_find_by_id(ids: Iterable[str], seconds: float) -> Snapshot:
    """Ask squeue, which knows all active jobs, and sacct for jobs that squeue has forgotten."""
    began, wanted = time.time(), set(ids)
    jobs = {job.id: job for job in parse_squeue(command_output(SQUEUE_COMMAND, seconds)) if job.id in wanted}
    if gone := sorted(wanted - jobs.keys()):
        jobs |= {job.id: job for job in ask_accounting(["--jobs", ",".join(gone)], seconds) if job.id in gone}
    return Snapshot(began, jobs)


def slurm_find_by_name(names: set[str], seconds: float) -> list[JobStatus]:
    found = [job for job in parse_squeue(command_output(SQUEUE_COMMAND, seconds)) if job.name in names]
    if missing := names - {job.name for job in found}:
        found += ask_accounting(["--starttime", "now-7days", "--name", ",".join(sorted(missing))], seconds)
    return found


def ask_accounting(options: list[str], seconds: float) -> list[JobStatus]:
    """Ask sacct for ended jobs. Accounting may be off; and the jobs that it calls active squeue has just denied."""
    try:
        return [job for job in parse_sacct(command_output([*SACCT_COMMAND, *options], seconds)) if not job.is_active]
    except SchedulerUnreachable:
        return []


def slurm_cancel(ids: list[str], seconds: float) -> None:
    command_output(["scancel", *ids], seconds)


def slurm_signal(id: str, name: str, seconds: float) -> None:
    command_output(["scancel", "--batch", f"--signal={name}", id], seconds)


def parse_squeue(text: str) -> list[JobStatus]:
    found = []
    for line in text.splitlines():
        parts = line.split("|", 4)  # the name is last, as it may hold anything
        if len(parts) == 5:
            id, state, reason, nodes, name = parts
            found.append(JobStatus(id, name, SLURM_STATES.get(state, "RUNNING"), reason, nodes))
    return found


def parse_sacct(text: str) -> list[JobStatus]:
    found = []
    for line in text.splitlines():
        parts = line.split("|", 5)
        if len(parts) == 6:
            id, state, reason, code, nodes, name = parts
            word = (state.split() or [""])[0].rstrip("+")  # CANCELLED by 1000
            number, _, signal = code.partition(":")
            ended = int(number) if number.isdigit() else None
            ended = 128 + int(signal) if ended == 0 and signal.isdigit() and int(signal) else ended
            found.append(JobStatus(id, name, SLURM_STATES.get(word, "RUNNING"), reason, nodes, ended))
    return found


# -------------------------------------------------------------------------------------------------------------- PBS
def pbs_find_by_id(ids: Iterable[str], seconds: float) -> Snapshot:
    """Ask for all jobs in one query, then for each missing one alone, as some versions print only the first."""
    began, wanted = time.time(), list(ids)
    jobs = index_by_number(query_pbs_jobs(wanted, seconds)) if wanted else {}
    for id in wanted:
        if len(wanted) > 1 and job_number(id) not in jobs:
            jobs |= index_by_number(query_pbs_jobs([id], seconds))
    return Snapshot(began, {id: jobs[job_number(id)]._replace(id=id) for id in wanted if job_number(id) in jobs})


def query_pbs_jobs(ids: list[str], seconds: float) -> list[JobStatus]:
    done = run_command(["qstat", "-x", "-f", "-F", "json", *ids], seconds)
    raise_on_error(done, "Unknown Job Id")
    try:
        return parse_qstat(done.stdout)
    except ValueError:  # some versions write environments into it that are not JSON
        return parse_qstat_text(run_command(["qstat", "-x", "-f", *ids], seconds).stdout)


def pbs_find_by_name(names: set[str], seconds: float) -> list[JobStatus]:
    ids = command_output(["qselect", "-x", "-u", user_name()], seconds).split()
    return [job for job in pbs_find_by_id(ids, seconds).jobs.values() if job.name in names]


def pbs_cancel(ids: list[str], seconds: float) -> None:
    raise_on_error(run_command(["qdel", *ids], seconds), "Unknown Job Id", "has finished")


def pbs_signal(id: str, name: str, seconds: float) -> None:
    raise_on_error(run_command(["qsig", "-s", f"SIG{name}", id], seconds), "Unknown Job Id", "has finished")


def raise_on_error(done: subprocess.CompletedProcess[str], *harmless: str) -> None:
    """Raise for errors but harmless ones: PBS exits with an error if one of many jobs is not there."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    wrong = [line for line in lines if not any(words in line for words in harmless)]
    if done.returncode and (wrong or not lines):
        message = wrong[-1] if wrong else f"exit code {done.returncode}"
        raise SchedulerUnreachable(message if message.startswith(done.args[0]) else f"{done.args[0]}: {message}")


def user_name() -> str:
    import getpass

    return getpass.getuser()


def job_number(id: str) -> str:
    """Return the number in an id of PBS, which shortens the server's name after it as it likes."""
    return id.split(".")[0]


def index_by_number(jobs: list[JobStatus]) -> dict[str, JobStatus]:
    return {job_number(job.id): job for job in jobs}


def parse_qstat(text: str) -> list[JobStatus]:
    answer = json.loads(text, strict=False) if text.strip() else {}
    return [parse_pbs_job(id, job) for id, job in answer.get("Jobs", {}).items()]


def parse_qstat_text(text: str) -> list[JobStatus]:
    """Parse `Job Id: X`, then `    name = value`, which continues in lines that begin with a tab."""
    found: list[JobStatus] = []
    id, job = "", dict[str, str]()
    for line in [*text.replace("\n\t", "").splitlines(), "Job Id:"]:
        if line.startswith("Job Id:"):
            if id:
                found.append(parse_pbs_job(id, job))
            id, job = line.partition(":")[2].strip(), {}
        elif " = " in line:
            name, _, value = line.strip().partition(" = ")
            job[name] = value
    return found


def parse_pbs_job(id: str, fields: dict[str, Any]) -> JobStatus:
    code = int(fields["Exit_status"]) if "Exit_status" in fields else None
    word = str(fields.get("job_state", ""))
    state = pbs_end_state(code) if word in ("F", "X", "C") else PBS_STATES.get(word, "RUNNING")
    nodes = ",".join(dict.fromkeys(re.findall(r"(?:^|\+)\(?([^/+()]+)/", str(fields.get("exec_host", "")))))
    return JobStatus(id, str(fields.get("Job_Name", "")), state, str(fields.get("comment", "")), nodes, code)


def pbs_end_state(code: int | None) -> str:
    """Return how a job ended whose state says only that it did."""
    if code is None or code in (256 + 15, 256 + 9):  # deleted before it began, or by qdel
        return "CANCELLED"
    if code == PBS_WALLTIME_EXIT:
        return "TIMEOUT"
    if code < 0:  # PBS could not start it, or lost it
        return "NODE_FAIL"
    return "FAILED" if code else "COMPLETED"


SCHEDULERS = {
    "slurm": Scheduler(slurm_find_by_id, slurm_find_by_name, slurm_cancel, slurm_signal),
    "pbs": Scheduler(pbs_find_by_id, pbs_find_by_name, pbs_cancel, pbs_signal),
}


SECONDS_PER_DAY = 86400


def parse_slurm_duration(limit: str) -> int | None:
    """Parse days-hours:minutes:seconds, of which the first parts may be missing; None for an infinite limit."""
    days, _, rest = limit.rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
    except ValueError:
        return None
    if days:
        parts += [0] * (3 - len(parts))
    parts = [0] * (3 - len(parts)) + parts if len(parts) != 1 else [0, parts[0], 0]
    return SECONDS_PER_DAY * int(days or 0) + 3600 * parts[0] + 60 * parts[1] + parts[2]
