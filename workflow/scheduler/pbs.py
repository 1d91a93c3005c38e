"""PBS Professional and OpenPBS: qstat, qselect, qdel and qsig, parsed defensively."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterable
from typing import Any

from workflow.config.walltime import to_seconds
from workflow.scheduler.interface import (
    JobStatus,
    Scheduler,
    SchedulerUnreachable,
    Snapshot,
    command_output,
    run_command,
    user_name,
)
from workflow.scheduler.limits import QueueLimit, SchedulerLimits, parse_whole_number

STATES = {
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
WALLTIME_EXIT = -29  # Exit_status of a job that was ended at its limit


class PBSScheduler(Scheduler):
    """PBS: qstat and qselect."""

    def find_by_id(self, ids: Iterable[str], seconds: float) -> Snapshot:
        """Query all jobs at once, then each missing one alone, as some versions print only the first."""
        began, wanted = time.time(), list(ids)
        jobs = index_by_number(query_jobs(wanted, seconds)) if wanted else {}
        for id in wanted:
            if len(wanted) > 1 and job_number(id) not in jobs:
                jobs |= index_by_number(query_jobs([id], seconds))
        return Snapshot(began, {id: jobs[job_number(id)]._replace(id=id) for id in wanted if job_number(id) in jobs})

    def find_by_name(self, names: set[str], seconds: float) -> list[JobStatus]:
        ids = command_output(["qselect", "-x", "-u", user_name()], seconds).split()
        return [job for job in self.find_by_id(ids, seconds).jobs.values() if job.name in names]

    def cancel(self, ids: list[str], seconds: float) -> None:
        raise_on_error(run_command(["qdel", *ids], seconds), "Unknown Job Id", "has finished")

    def signal(self, id: str, name: str, seconds: float) -> None:
        raise_on_error(run_command(["qsig", "-s", f"SIG{name}", id], seconds), "Unknown Job Id", "has finished")

    def read_limits(self, seconds: float) -> SchedulerLimits:
        output = command_output(["qstat", "-Q", "-f", "-F", "json"], seconds)
        try:
            return parse_limits(output)
        except (ValueError, AttributeError):  # some versions write what is not JSON
            raise SchedulerUnreachable(
                f"qstat: its list of queues could not be read: {output[:60].strip()!r}"
            ) from None


# ----------------------------------------------------------------------------------------------------------------- jobs
def query_jobs(ids: list[str], seconds: float) -> list[JobStatus]:
    done = run_command(["qstat", "-x", "-f", "-F", "json", *ids], seconds)
    raise_on_error(done, "Unknown Job Id")
    try:
        return parse_qstat(done.stdout)
    except ValueError:  # some versions write environments into it that are not JSON
        return parse_qstat_text(run_command(["qstat", "-x", "-f", *ids], seconds).stdout)


def raise_on_error(done: subprocess.CompletedProcess[str], *harmless: str) -> None:
    """Raise for errors but harmless ones: PBS exits with an error if one of many jobs is not there."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    wrong = [line for line in lines if not any(words in line for words in harmless)]
    if done.returncode and (wrong or not lines):
        message = wrong[-1] if wrong else f"exit code {done.returncode}"
        raise SchedulerUnreachable(message if message.startswith(done.args[0]) else f"{done.args[0]}: {message}")


def job_number(id: str) -> str:
    """Return the number in an id of PBS, which shortens the server's name after it as it likes."""
    return id.split(".")[0]


def index_by_number(jobs: list[JobStatus]) -> dict[str, JobStatus]:
    return {job_number(job.id): job for job in jobs}


def parse_qstat(text: str) -> list[JobStatus]:
    answer = json.loads(text, strict=False) if text.strip() else {}
    return [parse_job(id, job) for id, job in answer.get("Jobs", {}).items()]


def parse_qstat_text(text: str) -> list[JobStatus]:
    """Parse `Job Id: X`, then `    name = value`, which continues in lines that begin with a tab."""
    found: list[JobStatus] = []
    id, job = "", dict[str, str]()
    for line in [*text.replace("\n\t", "").splitlines(), "Job Id:"]:
        if line.startswith("Job Id:"):
            if id:
                found.append(parse_job(id, job))
            id, job = line.partition(":")[2].strip(), {}
        elif " = " in line:
            name, _, value = line.strip().partition(" = ")
            job[name] = value
    return found


def parse_job(id: str, fields: dict[str, Any]) -> JobStatus:
    code = int(fields["Exit_status"]) if "Exit_status" in fields else None
    word = str(fields.get("job_state", ""))
    state = find_end_state(code) if word in ("F", "X", "C") else STATES.get(word, "RUNNING")
    nodes = ",".join(dict.fromkeys(re.findall(r"(?:^|\+)\(?([^/+()]+)/", str(fields.get("exec_host", "")))))
    return JobStatus(id, str(fields.get("Job_Name", "")), state, str(fields.get("comment", "")), nodes, code)


def find_end_state(code: int | None) -> str:
    """Return how a job ended whose state says only that it did."""
    if code is None or code in (256 + 15, 256 + 9):  # deleted before it began, or by qdel
        return "CANCELLED"
    if code == WALLTIME_EXIT:
        return "TIMEOUT"
    if code < 0:  # PBS could not start it, or lost it
        return "NODE_FAIL"
    return "FAILED" if code else "COMPLETED"


# --------------------------------------------------------------------------------------------------------------- limits
def parse_limits(queues: str) -> SchedulerLimits:
    """Parse the JSON of `qstat -Q`."""
    limits, routes = {}, {}
    for name, fields in json.loads(queues, strict=False).get("Queue", {}).items():
        most, least = fields.get("resources_max", {}), fields.get("resources_min", {})
        time = str(most.get("walltime", ""))
        closed_by = [word for word in ("enabled", "started") if str(fields.get(word, "True")) != "True"]
        limits[name] = QueueLimit(
            fewest=parse_whole_number(str(least.get("nodect", ""))),
            most=parse_whole_number(str(most.get("nodect", ""))),
            seconds=to_seconds(time) if re.fullmatch(r"\d+:\d\d:\d\d", time) else None,
            running=parse_limit_per_user(str(fields.get("max_run", ""))),
            queued=parse_limit_per_user(str(fields.get("max_queued", ""))),
            closed=f"is not {closed_by[0]}" if closed_by else "",
        )
        if fields.get("queue_type") == "Route":
            routes[name] = tuple(filter(None, re.split(r"[\s,]+", str(fields.get("route_destinations", "")))))
    return SchedulerLimits(limits, "", routes=routes)


def parse_limit_per_user(text: str) -> int | None:
    """Parse [u:PBS_GENERIC=2], a limit for any user."""
    found = re.search(r"u:PBS_GENERIC=(\d+)", text)
    return int(found[1]) if found else None
