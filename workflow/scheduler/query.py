"""What Slurm or PBS say of our jobs: one query for all of them, read defensively, and no verdict from a failed one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

# Active states are PENDING and RUNNING. A word that is not known here counts as active: nobody is declared dead by it.
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
PBS_WALLTIME = -29  # Exit_status of a job that was ended at its limit
# Reasons for which a job waits for ever, whatever others do.
HOPELESS = {
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
# What a shell, or the job in which the driver runs, says to these commands: above the script's own options, and inherited
# by the job. What is kept says where the scheduler is, who asks, and what a site's modules make the default of its srun.
OPTIONS = re.compile("(SLURM|SBATCH|SRUN|SQUEUE|SACCT|SCANCEL|PBS)_")
KEPT = {
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


class Unreachable(Exception):
    """The scheduler did not answer; nothing is known, and nothing may be concluded."""


class Seen(NamedTuple):
    """One job, as the scheduler tells it."""

    id: str
    name: str
    state: str  # PENDING, RUNNING, or how it ended
    reason: str = ""
    nodes: str = ""
    code: int | None = None

    @property
    def active(self) -> bool:
        return self.state in ("PENDING", "RUNNING")

    @property
    def hopeless(self) -> bool:
        return self.state == "PENDING" and self.reason in HOPELESS


class Snapshot(NamedTuple):
    """All jobs that were asked for and are known. What was submitted after `began` may be missing."""

    began: float  # time.time() before the query was sent
    jobs: dict[str, Seen]


class Scheduler(NamedTuple):
    """The verbs that we need of it."""

    look: Callable[[Iterable[str], float], Snapshot]  # (ids, seconds)
    named: Callable[[set[str], float], list[Seen]]  # jobs of ours with these names, ended ones too where it remembers
    cancel: Callable[[list[str], float], None]
    signal: Callable[[str, str, float], None] | None = None  # (id, name without SIG, seconds): to the job's script


def ask(command: list[str], seconds: float, cwd: Path | None = None) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name in KEPT or not OPTIONS.match(name)}
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
        raise Unreachable(f"{command[0]} has not answered for {seconds:.0f} s") from None
    except OSError as error:
        raise Unreachable(f"{command[0]}: {error.strerror.lower()}") from None


def answer(command: list[str], seconds: float) -> str:
    done = ask(command, seconds)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise Unreachable(f"{command[0]}: {said[-1]}")
    return done.stdout


# ------------------------------------------------------------------------------------------------------------ Slurm
SQUEUE = ["squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%r|%N|%j"]
SACCT = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State,Reason,ExitCode,NodeList,JobName"]


def slurm_look(ids: Iterable[str], seconds: float) -> Snapshot:
    """squeue knows all that is active. How something ended that it has forgotten, sacct may know."""
    began, wanted = time.time(), set(ids)
    jobs = {job.id: job for job in parse_squeue(answer(SQUEUE, seconds)) if job.id in wanted}
    if gone := sorted(wanted - jobs.keys()):
        jobs |= {job.id: job for job in remembered(["--jobs", ",".join(gone)], seconds) if job.id in gone}
    return Snapshot(began, jobs)


def slurm_named(names: set[str], seconds: float) -> list[Seen]:
    found = [job for job in parse_squeue(answer(SQUEUE, seconds)) if job.name in names]
    if missing := names - {job.name for job in found}:
        found += remembered(["--starttime", "now-7days", "--name", ",".join(sorted(missing))], seconds)
    return found


def remembered(options: list[str], seconds: float) -> list[Seen]:
    """From the accounting. It may be off, or away; and what it calls active, squeue has just denied."""
    try:
        return [job for job in parse_sacct(answer([*SACCT, *options], seconds)) if not job.active]
    except Unreachable:
        return []


def slurm_cancel(ids: list[str], seconds: float) -> None:
    answer(["scancel", *ids], seconds)


def slurm_signal(id: str, name: str, seconds: float) -> None:
    answer(["scancel", "--batch", f"--signal={name}", id], seconds)


def parse_squeue(text: str) -> list[Seen]:
    found = []
    for line in text.splitlines():
        parts = line.split("|", 4)  # the name is last, as it may hold anything
        if len(parts) == 5:
            id, state, reason, nodes, name = parts
            found.append(Seen(id, name, SLURM_STATES.get(state, "RUNNING"), reason, nodes))
    return found


def parse_sacct(text: str) -> list[Seen]:
    found = []
    for line in text.splitlines():
        parts = line.split("|", 5)
        if len(parts) == 6:
            id, state, reason, code, nodes, name = parts
            word = (state.split() or [""])[0].rstrip("+")  # CANCELLED by 1000
            number, _, signal = code.partition(":")
            ended = int(number) if number.isdigit() else None
            ended = 128 + int(signal) if ended == 0 and signal.isdigit() and int(signal) else ended
            found.append(Seen(id, name, SLURM_STATES.get(word, "RUNNING"), reason, nodes, ended))
    return found


# -------------------------------------------------------------------------------------------------------------- PBS
def pbs_look(ids: Iterable[str], seconds: float) -> Snapshot:
    """All in one query; who is missing in the answer is asked for alone, as some versions print only the first."""
    began, wanted = time.time(), list(ids)
    jobs = by_number(pbs_jobs(wanted, seconds)) if wanted else {}
    for id in wanted:
        if len(wanted) > 1 and number(id) not in jobs:
            jobs |= by_number(pbs_jobs([id], seconds))
    return Snapshot(began, {id: jobs[number(id)]._replace(id=id) for id in wanted if number(id) in jobs})


def pbs_jobs(ids: list[str], seconds: float) -> list[Seen]:
    done = ask(["qstat", "-x", "-f", "-F", "json", *ids], seconds)
    check(done, "Unknown Job Id")
    try:
        return parse_qstat(done.stdout)
    except ValueError:  # some versions write environments into it that are not JSON
        return parse_qstat_text(ask(["qstat", "-x", "-f", *ids], seconds).stdout)


def pbs_named(names: set[str], seconds: float) -> list[Seen]:
    ids = answer(["qselect", "-x", "-u", user()], seconds).split()
    return [job for job in pbs_look(ids, seconds).jobs.values() if job.name in names]


def pbs_cancel(ids: list[str], seconds: float) -> None:
    check(ask(["qdel", *ids], seconds), "Unknown Job Id", "has finished")


def pbs_signal(id: str, name: str, seconds: float) -> None:
    check(ask(["qsig", "-s", f"SIG{name}", id], seconds), "Unknown Job Id", "has finished")


def check(done: subprocess.CompletedProcess, *harmless: str) -> None:
    """PBS exits with an error if one of many jobs is not there, and if nothing is."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    wrong = [line for line in lines if not any(words in line for words in harmless)]
    if done.returncode and (wrong or not lines):
        said = wrong[-1] if wrong else f"exit code {done.returncode}"
        raise Unreachable(said if said.startswith(done.args[0]) else f"{done.args[0]}: {said}")


def user() -> str:
    import getpass

    return getpass.getuser()


def number(id: str) -> str:
    """PBS shortens the server's name as it likes."""
    return id.split(".")[0]


def by_number(jobs: list[Seen]) -> dict[str, Seen]:
    return {number(job.id): job for job in jobs}


def parse_qstat(text: str) -> list[Seen]:
    said = json.loads(text, strict=False) if text.strip() else {}
    return [pbs_job(id, job) for id, job in said.get("Jobs", {}).items()]


def parse_qstat_text(text: str) -> list[Seen]:
    """`Job Id: X`, then `    name = value`, going on in lines that begin with a tab."""
    found, id, job = [], "", {}
    for line in [*text.replace("\n\t", "").splitlines(), "Job Id:"]:
        if line.startswith("Job Id:"):
            if id:
                found.append(pbs_job(id, job))
            id, job = line.partition(":")[2].strip(), {}
        elif " = " in line:
            name, _, value = line.strip().partition(" = ")
            job[name] = value
    return found


def pbs_job(id: str, said: dict) -> Seen:
    code = int(said["Exit_status"]) if "Exit_status" in said else None
    word = str(said.get("job_state", ""))
    state = pbs_end(code) if word in ("F", "X", "C") else PBS_STATES.get(word, "RUNNING")
    nodes = ",".join(dict.fromkeys(re.findall(r"(?:^|\+)\(?([^/+()]+)/", str(said.get("exec_host", "")))))
    return Seen(id, str(said.get("Job_Name", "")), state, str(said.get("comment", "")), nodes, code)


def pbs_end(code: int | None) -> str:
    """How a job ended whose state says no more than that it did."""
    if code is None or code in (256 + 15, 256 + 9):  # deleted before it began, or by qdel
        return "CANCELLED"
    if code == PBS_WALLTIME:
        return "TIMEOUT"
    if code < 0:  # PBS could not start it, or lost it
        return "NODE_FAIL"
    return "FAILED" if code else "COMPLETED"


KINDS = {
    "slurm": Scheduler(slurm_look, slurm_named, slurm_cancel, slurm_signal),
    "pbs": Scheduler(pbs_look, pbs_named, pbs_cancel, pbs_signal),
}


DAY = 86400


def slurm_seconds(limit: str) -> int | None:
    """days-hours:minutes:seconds, of which the first parts may be missing; infinite."""
    days, _, rest = limit.rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
    except ValueError:
        return None
    if days:
        parts += [0] * (3 - len(parts))
    parts = [0] * (3 - len(parts)) + parts if len(parts) != 1 else [0, parts[0], 0]
    return DAY * int(days or 0) + 3600 * parts[0] + 60 * parts[1] + parts[2]
