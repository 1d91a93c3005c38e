"""Flux: flux jobs, flux queue and flux resource. Written from the manuals of flux-core; it has not run at a site.

A job is a script that runs as the initial program of a Flux instance of its own, on the first of its nodes. There the
variables that describe a job are unset, so commands of that instance say its id and its hosts. The manuals do not say
whether a signal of `--signal` reaches the script or the brokers of its instance, so the script sets itself an alarm.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import ClassVar

from gnnscale.contract.job_plan import AllocationPlan
from workflow.config.batch_scheduler import BatchScheduler
from workflow.config.schedulers.flux import Flux
from workflow.config.walltime import SECONDS_PER_DAY
from workflow.scheduler.interface import (
    JobStatus,
    Scheduler,
    SchedulerUnreachable,
    Snapshot,
    command_output,
    run_command,
)
from workflow.scheduler.limits import QueueLimit, SchedulerLimits, parse_whole_number
from workflow.scheduler.queue_facts import QueueFacts, SiteDraft
from workflow.scheduler.submission import OUTPUT_NAME, JobHead

STATES = {  # a state while a job is active, then its result; the manual has PENDING and RUNNING for the former
    "NEW": "PENDING",
    "DEPEND": "PENDING",
    "PRIORITY": "PENDING",
    "SCHED": "PENDING",
    "PENDING": "PENDING",
    "RUN": "RUNNING",
    "CLEANUP": "RUNNING",
    "RUNNING": "RUNNING",
    "COMPLETED": "COMPLETED",
    "FAILED": "FAILED",
    "CANCELED": "CANCELLED",
    "TIMEOUT": "TIMEOUT",
}
JOB_FORMAT = "{id.f58}|{status}|{returncode}|{exception.type}|{nodelist}|{name}"
JOBS_COMMAND = ["flux", "jobs", "-n", f"--format={JOB_FORMAT}"]
NEVER_BEGAN = -128
MAX_LISTED = 100_000  # without a number `flux jobs` lists a thousand
UNKNOWN_JOB = re.compile(r"JobID (\S+) unknown")
QUEUES_COMMAND = ["flux", "queue", "list", "-n"]
QUEUES_FORMAT = (
    "--format={queuem}|{submission}|{scheduling}|{limits.timelimit!F}|{limits.min.nnodes}|{limits.max.nnodes}"
)
NODES_COMMAND = ["flux", "resource", "list", "-n", "--states=up", "--format={queue}|{nnodes}|{ncores}|{ngpus}"]
SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": SECONDS_PER_DAY, "": 1}


class FluxScheduler(Scheduler):
    """Flux, whose command `flux jobs` says of each id that it does not know that it does not know it."""

    submit_command: ClassVar = "flux batch"
    cancel_command: ClassVar = "flux cancel"
    excludes_nodes: ClassVar = True
    allocation: ClassVar[AllocationPlan] = {
        "id": ["flux", "getattr", "jobid"],
        "hosts": ["flux", "hostlist", "--expand", "instance"],
    }

    def find_by_id(self, ids: Iterable[str], seconds: float) -> Snapshot:
        began, wanted = time.time(), sorted(ids)
        if not wanted:
            return Snapshot(began, {})
        done = run_command([*JOBS_COMMAND, *wanted], seconds)
        unknown = frozenset(ascii_id(id) for id in UNKNOWN_JOB.findall(done.stderr))
        if done.returncode and not unknown:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise SchedulerUnreachable(f"flux jobs: {lines[-1]}")
        jobs = {job.id: job for job in parse_jobs(done.stdout)}
        return Snapshot(began, {id: jobs[id] for id in wanted if id in jobs}, unknown)

    def find_by_name(self, names: set[str], seconds: float) -> list[JobStatus]:
        listed = command_output([*JOBS_COMMAND, "-a", f"--count={MAX_LISTED}"], seconds)
        return [job for job in parse_jobs(listed) if job.name in names]

    def cancel(self, ids: list[str], seconds: float) -> None:
        done = run_command(["flux", "cancel", *ids], seconds)
        wrong = [line for line in done.stderr.splitlines() if not re.search("inactive|unknown|not found", line)]
        if done.returncode and wrong:
            raise SchedulerUnreachable(f"flux cancel: {wrong[-1]}")

    def render_options(self, head: JobHead, settings: BatchScheduler) -> list[str]:
        assert isinstance(settings, Flux)
        slots = head.nodes * head.ranks_per_node * max(1, head.slots)
        share = ["--exclusive"] if settings.exclusive else [f"--nslots={slots}", f"--cores-per-slot={head.threads}"]
        options = {"--queue": head.partition, "--bank": head.account}
        return [
            *(f"--job-name={head.name}", f"--output={OUTPUT_NAME}"),
            *(f"--nodes={head.nodes}", f"--time-limit={head.seconds // 60}m", *share),
            *(f"{name}={value}" for name, value in options.items() if value),
            *([f"--requires=-hosts:{','.join(head.avoid)}"] if head.avoid else []),
            *head.directives,
        ]

    def parse_job_id(self, printed: str) -> str | None:
        found = re.search(r"^\s*(?:ƒ|f)(\w+)\s*$", printed, re.M)
        return f"f{found[1]}" if found else None

    def read_release(self, seconds: float) -> str:
        found = re.search(r"commands:\s*(\S+)", command_output(["flux", "version"], seconds))
        command_output([*JOBS_COMMAND, "--count=1"], seconds)
        return f"flux {found[1]}" if found else "flux"

    def read_limits(self, seconds: float) -> SchedulerLimits:
        return parse_limits(command_output([*QUEUES_COMMAND, QUEUES_FORMAT], seconds))

    def read_queues(self, seconds: float) -> list[QueueFacts]:
        limits = self.read_limits(seconds)
        return parse_queues(limits, command_output(NODES_COMMAND, seconds))

    def draft(self, main: QueueFacts) -> SiteDraft:
        gpus = ', "--gpus-per-task=1"' if main.gpus else ""
        options = ["exclusive: true       # ??? false where jobs share nodes"]
        return SiteDraft(options, "flux", f'["run", "-N", "{{nodes}}", "-n", "{{ranks}}", "--exclusive"{gpus}]')


def ascii_id(id: str) -> str:
    """Return an id as it looks in every locale: where it can, Flux prints ƒ for the f at its beginning."""
    return id.replace("ƒ", "f")


def parse_jobs(text: str) -> list[JobStatus]:
    found = []
    for line in text.splitlines():
        parts = line.split("|", 5)  # the name is last, as it may hold anything
        if len(parts) == 6:
            id, status, code, exception, nodes, name = parts
            state = "NODE_FAIL" if exception == "node-failure" else STATES.get(status, "RUNNING")
            ended = int(code) if re.fullmatch(r"-?\d+", code) else None
            if ended is not None and ended < 0:  # the number of a signal, or -128 where it never began
                ended = 128 - ended if ended > NEVER_BEGAN else None
            found.append(JobStatus(ascii_id(id), name, state, exception, nodes, ended))
    return found


def parse_limits(queues: str) -> SchedulerLimits:
    """Parse `flux queue list`. A Flux without queues lists one that has no name."""
    found, default = {}, ""
    for line in queues.splitlines():
        marked, submission, scheduling, longest, fewest, most = (part.strip() for part in line.split("|"))
        name = marked.rstrip("*")
        default = name if marked.endswith("*") else default
        closed = next((word for word in (submission, scheduling) if word not in ("enabled", "started")), "")
        found[name] = QueueLimit(
            fewest=parse_whole_number(fewest) or None,
            most=parse_whole_number(most),
            seconds=parse_duration(longest),
            closed=f"is {closed}" if closed else "",
        )
    return SchedulerLimits(found, default)


def parse_queues(limits: SchedulerLimits, nodes: str) -> list[QueueFacts]:
    """Combine limits with `flux resource list`, which has a line for nodes that are alike; they may be in several queues."""
    kinds: dict[str, list[tuple[int, int, int]]] = {
        name: [] for name, limit in limits.queues.items() if not limit.closed
    }
    for line in nodes.splitlines():
        queues, *numbers = (part.strip() for part in line.split("|"))
        if len(numbers) == 3 and all(number.isdigit() for number in numbers) and int(numbers[0]):
            count, cores, gpus = map(int, numbers)
            for name in kinds.keys() & set(queues.split(",")):
                kinds[name].append((count, cores // count, gpus // count))
    return [describe_queue(name, limits, each) for name, each in kinds.items() if each]


def describe_queue(name: str, limits: SchedulerLimits, kinds: list[tuple[int, int, int]]) -> QueueFacts:
    limit, whole = limits.queues[name], sum(count for count, _, _ in kinds)
    most = whole if limit.most is None else min(whole, limit.most)
    cores, gpus = min(cores for _, cores, _ in kinds), min(gpus for _, _, gpus in kinds)
    return QueueFacts(name, name == limits.default, limit.fewest or 1, most, limit.seconds, cores, 0, gpus, "")


def parse_duration(text: str) -> int | None:
    """Parse a duration of Flux, such as 90m or 1.5h; None for an infinite one."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?)([smhd]?)", text)
    return int(float(found[1]) * SECONDS_PER_UNIT[found[2]]) if found and float(found[1]) else None
