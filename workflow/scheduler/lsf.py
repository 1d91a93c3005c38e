"""IBM Spectrum LSF: bjobs, bqueues and bhosts. Written from its documentation; it has not run at a site."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from gnnscale.contract.job_plan import AllocationPlan
from workflow.config.batch_scheduler import BatchScheduler
from workflow.config.schedulers.lsf import LSF
from workflow.scheduler.interface import (
    JobStatus,
    Scheduler,
    SchedulerUnreachable,
    Snapshot,
    command_output,
    run_command,
)
from workflow.scheduler.limits import QueueLimit, SchedulerLimits
from workflow.scheduler.queue_facts import QueueFacts, SiteDraft
from workflow.scheduler.submission import OUTPUT_NAME, SCRIPT_NAME, JobHead, Refusal, judge_refusal, suggest_fix

STATES = {
    "PEND": "PENDING",
    "PSUSP": "PENDING",
    "WAIT": "PENDING",
    "RUN": "RUNNING",
    "USUSP": "RUNNING",
    "SSUSP": "RUNNING",
    "UNKWN": "RUNNING",  # its host does not answer, and it may still run there
    "ZOMBI": "NODE_FAIL",
    "DONE": "COMPLETED",
}
END_REASONS = {  # word at the beginning of exit_reason
    "TERM_RUNLIMIT": "TIMEOUT",
    "TERM_DEADLINE": "TIMEOUT",
    "TERM_MEMLIMIT": "OUT_OF_MEMORY",
    "TERM_SWAP": "OUT_OF_MEMORY",
    "TERM_OWNER": "CANCELLED",
    "TERM_FORCE_OWNER": "CANCELLED",
    "TERM_ADMIN": "CANCELLED",
    "TERM_FORCE_ADMIN": "CANCELLED",
    "TERM_PREEMPT": "PREEMPTED",
    "TERM_REQUEUE_OWNER": "PREEMPTED",
    "TERM_REQUEUE_ADMIN": "PREEMPTED",
    "TERM_ZOMBIE": "NODE_FAIL",
    "TERM_EXTERNAL_SIGNAL": "FAILED",
}
JOBS_COMMAND = ["bjobs", "-a", "-json", "-o", "jobid stat exit_code exit_reason pend_reason exec_host job_name"]
NO_JOBS = re.compile("no (unfinished |matching )?job found", re.I)
HARMLESS = re.compile("already finished|no matching job|is not found|being terminated", re.I)  # from bkill
UNREACHABLE_WORDS = re.compile("lsf is down|cannot connect to lsf|please wait|not responding", re.I)
WAIT_WORDS = re.compile("pending job threshold|job (slot )?limit|queue has been closed", re.I)


class LSFScheduler(Scheduler):
    """LSF, whose bjobs knows all active jobs, and for an hour or so those that have ended."""

    submit_command: ClassVar = "bsub"
    cancel_command: ClassVar = "bkill"
    excludes_nodes: ClassVar = True
    provider: ClassVar = "LSFProvider"
    unwanted_lines: ClassVar = ("#BSUB -o", "#BSUB -e")  # paths that Parsl makes of the time
    allocation: ClassVar[AllocationPlan] = {"id": ["echo", "$LSB_JOBID"], "hosts": ["cat", "$LSB_DJOB_HOSTFILE"]}
    option_variables: ClassVar = "(LSB|BSUB)_"

    def find_by_id(self, ids: Iterable[str], seconds: float) -> Snapshot:
        began, wanted = time.time(), set(ids)
        jobs = {job.id: job for job in list_jobs(seconds) if job.id in wanted}
        return Snapshot(began, jobs, frozenset(wanted - jobs.keys()))

    def find_by_name(self, names: set[str], seconds: float) -> list[JobStatus]:
        return [job for job in list_jobs(seconds) if job.name in names]

    def cancel(self, ids: list[str], seconds: float) -> None:
        done = run_command(["bkill", *ids], seconds)
        wrong = [line for line in done.stderr.splitlines() if not HARMLESS.search(line)]
        if done.returncode and wrong:
            raise SchedulerUnreachable(f"bkill: {wrong[-1]}")

    def render_options(self, head: JobHead, settings: BatchScheduler) -> list[str]:
        assert isinstance(settings, LSF)
        options = {"-q": head.partition, "-P": head.account}
        return [
            *(f"-o {OUTPUT_NAME}", "-rn", *(["-x"] if settings.exclusive else [])),
            *(f"{name} {value}" for name, value in options.items() if value),
            *(f"-R \"select[hname!='{host}']\"" for host in head.avoid),
            *head.directives,
        ]

    def provider_options(self, head: JobHead, settings: BatchScheduler) -> dict[str, Any]:
        return {
            "request_by_nodes": False,  # its -nnodes is of LSF with CSM only
            "cores_per_block": head.nodes * head.cores,
            "cores_per_node": head.cores,
            "bsub_redirection": True,
        }

    def submit_script(self, folder: Path, seconds: float) -> subprocess.CompletedProcess[str]:
        with open(folder / SCRIPT_NAME, "rb") as script:  # only what it reads there it searches for options
            return run_command(["bsub"], seconds, folder, script)

    def parse_job_id(self, printed: str) -> str | None:
        found = re.search(r"Job <(\d+)> is submitted", printed)
        return found[1] if found else None

    def judge_refusal(self, words: str, account: str | None) -> Refusal:
        if UNREACHABLE_WORDS.search(words):
            return Refusal("unreachable")
        if WAIT_WORDS.search(words):
            return Refusal("wait")
        if "runlimit" in words.lower():
            return Refusal("refused", suggest_fix("walltime", account))
        return judge_refusal(words, account)

    def read_release(self, seconds: float) -> str:
        lines = command_output(["lsid"], seconds).splitlines()
        list_jobs(seconds)
        return next((line.strip() for line in lines if "LSF" in line), "lsf")

    def read_limits(self, seconds: float) -> SchedulerLimits:
        return parse_limits(command_output(["bqueues", "-l"], seconds))

    def read_queues(self, seconds: float) -> list[QueueFacts]:
        return parse_queues(self.read_limits(seconds), command_output(["bhosts", "-w"], seconds))

    def draft(self, main: QueueFacts) -> SiteDraft:
        options = ["exclusive: true       # ??? false where jobs share hosts"]
        options += ["# directives: ['-gpu \"num=4\"']  # ??? LSF does not list GPUs here"]
        return SiteDraft(options, "mpiexec", '["-n", "{ranks}", "-ppn", "{per_node}"]')


def list_jobs(seconds: float) -> list[JobStatus]:
    done = run_command(JOBS_COMMAND, seconds)
    if done.returncode and not NO_JOBS.search(done.stderr + done.stdout):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise SchedulerUnreachable(f"bjobs: {lines[-1]}")
    try:
        return parse_jobs(done.stdout)
    except (ValueError, AttributeError):
        found = done.stdout[:60].strip()
        raise SchedulerUnreachable(f"bjobs: its list of jobs could not be read: {found!r}") from None


def parse_jobs(text: str) -> list[JobStatus]:
    """Parse the JSON of bjobs; it prints none where there is no job."""
    answer = json.loads(text, strict=False) if text.strip().startswith("{") else {}
    return [parse_job(record) for record in answer.get("RECORDS", []) if "JOBID" in record and "ERROR" not in record]


def parse_job(record: dict[str, str]) -> JobStatus:
    word, why = record.get("STAT", ""), record.get("EXIT_REASON", "")
    state = STATES.get(word, "RUNNING")
    if word == "EXIT":
        state = END_REASONS.get(why.partition(":")[0].strip(), "FAILED")
    hosts = (re.sub(r"^\d+\*", "", host) for host in record.get("EXEC_HOST", "").split(":") if host)
    code = record.get("EXIT_CODE", "")
    reason = record.get("PEND_REASON", "") if state == "PENDING" else why
    return JobStatus(
        record["JOBID"],
        record.get("JOB_NAME", ""),
        state,
        reason.strip(),
        ",".join(dict.fromkeys(hosts)),
        int(code) if code.isdigit() else 0 if word == "DONE" else None,
    )


# --------------------------------------------------------------------------------------------------------------- limits
def parse_limits(text: str) -> SchedulerLimits:
    """Parse `bqueues -l`: a block for each queue, in which a limit stands in the line below its name."""
    found, default = {}, ""
    for block in re.split(r"^QUEUE:", text, flags=re.M)[1:]:
        name = block.split()[0]
        default = name if "this is the default queue" in block.lower() else default
        state = re.search(r"^\s*-?\d+\s+-?\d+\s+(\w+):(\w+)", block, re.M)
        closed = [] if state is None else [word for word in state.groups() if word not in ("Open", "Active")]
        # Default limits come first under the same name.
        longest = re.findall(r"^\s*RUNLIMIT\s*\n\s*([\d.]+) min", block.split("MAXIMUM LIMITS:")[-1], re.M)
        seconds = int(float(longest[0]) * 60) if longest else None
        found[name] = QueueLimit(seconds=seconds, closed=f"is {closed[0].lower()}" if closed else "")
    return SchedulerLimits(found, default)


def parse_queues(limits: SchedulerLimits, bhosts: str) -> list[QueueFacts]:
    """Combine limits with `bhosts`: its host, state, and slots for each; which queue has which hosts it does not say."""
    rows = [line.split() for line in bhosts.splitlines()[1:]]
    slots = [int(row[3]) for row in rows if len(row) > 3 and row[3].isdigit() and row[1] not in ("unavail", "unreach")]
    if not slots:
        return []
    return [
        QueueFacts(name, name == limits.default, 1, len(slots), limit.seconds, min(slots), 0, 0, "")
        for name, limit in limits.queues.items()
        if not limit.closed
    ]
