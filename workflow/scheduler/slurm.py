"""Slurm: squeue, sacct, scontrol and sacctmgr, parsed defensively."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from gnnscale.contract.job_plan import AllocationPlan
from workflow.config.batch_scheduler import BatchScheduler
from workflow.config.schedulers.slurm import Slurm
from workflow.config.walltime import SECONDS_PER_DAY
from workflow.scheduler.interface import (
    JobStatus,
    Rehearsal,
    Scheduler,
    SchedulerUnreachable,
    Snapshot,
    command_output,
    run_command,
    user_name,
)
from workflow.scheduler.limits import QueueLimit, SchedulerLimits, parse_whole_number, stricter_limit
from workflow.scheduler.queue_facts import QueueFacts, SiteDraft, leading_number
from workflow.scheduler.submission import JobHead, Refusal, judge_refusal, suggest_fix

STATES = {
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
SQUEUE_COMMAND = ["squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%r|%N|%j"]
SACCT_COMMAND = [
    "sacct",
    "--allocations",
    "--noheader",
    "--parsable2",
    "--format=JobID,State,Reason,ExitCode,NodeList,JobName",
]


# Time lifts a limit on the number of jobs, but not one on the size of a job. Slurm names the latter, in front of a sentence
# that fits both.
SIZE_LIMIT_WORDS = re.compile(r"\b(Assoc|QOS)\w*(PerJob|PerNode|WallDuration|Min(?!ute))\w*", re.I)
SIZE_HINT = "no job may be of that size: look at `nodes` of `queues` of the site's file, or --set train.queue=NAME"
LAUNCH_FLAGS = (
    '["--nodes={nodes}", "--ntasks={ranks}", "--ntasks-per-node={per_node}", "--cpus-per-task={threads}", '
    '"--kill-on-bad-exit=1"]'
)


class SlurmScheduler(Scheduler):
    """Slurm: squeue knows all active jobs, and sacct those that squeue has forgotten, where accounting is on."""

    submit_command: ClassVar = "sbatch"
    cancel_command: ClassVar = "scancel"
    provider: ClassVar = "SlurmProvider"
    excludes_nodes: ClassVar = True
    signals_jobs: ClassVar = True
    allocation: ClassVar[AllocationPlan] = {
        "id": ["echo", "$SLURM_JOB_ID"],
        "hosts": ["scontrol", "show", "hostnames", "$SLURM_JOB_NODELIST"],
    }
    option_variables: ClassVar = "(SLURM|SBATCH|SRUN|SQUEUE|SACCT|SCANCEL)_"
    kept_variables: ClassVar = frozenset(
        {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS", "SLURM_MPI_TYPE"}
    )

    def find_by_id(self, ids: Iterable[str], seconds: float) -> Snapshot:
        began, wanted = time.time(), set(ids)
        jobs = {job.id: job for job in parse_squeue(command_output(SQUEUE_COMMAND, seconds)) if job.id in wanted}
        gone = frozenset(wanted - jobs.keys())
        if gone:
            ended = query_accounting(["--jobs", ",".join(sorted(gone))], seconds)
            jobs |= {job.id: job for job in ended if job.id in gone}
        return Snapshot(began, jobs, gone - jobs.keys())

    def find_by_name(self, names: set[str], seconds: float) -> list[JobStatus]:
        found = [job for job in parse_squeue(command_output(SQUEUE_COMMAND, seconds)) if job.name in names]
        if missing := names - {job.name for job in found}:
            found += query_accounting(["--starttime", "now-7days", "--name", ",".join(sorted(missing))], seconds)
        return found

    def cancel(self, ids: list[str], seconds: float) -> None:
        command_output(["scancel", *ids], seconds)

    def render_options(self, head: JobHead, settings: BatchScheduler) -> list[str]:
        assert isinstance(settings, Slurm)
        share = f"--cpus-per-task={head.threads * max(1, head.slots)}"
        options = {"--partition": head.partition, "--account": head.account, "--qos": head.qos}
        # B: to this script, which signals the ranks. A requeued job would run twice: the driver submits it again.
        signal = f"--signal=B:USR1@{settings.signal_seconds}"
        return [
            *(f"{name}={value}" for name, value in options.items() if value),
            "--exclusive" if settings.exclusive else share,
            *(signal, "--no-requeue", "--open-mode=append"),
            *head.directives,
            *([f"--exclude={','.join(head.avoid)}"] if head.avoid else []),
        ]

    def provider_options(self, head: JobHead, settings: BatchScheduler) -> dict[str, Any]:
        return {"exclusive": False}  # Parsl's default is true

    def parse_job_id(self, printed: str) -> str | None:
        found = re.search(r"Submitted batch job (\d+)", printed)
        return found[1] if found else None

    def judge_refusal(self, words: str, account: str | None) -> Refusal:
        limit = SIZE_LIMIT_WORDS.search(words)
        if limit is None:
            return judge_refusal(words, account)
        # Not the sentence that Slurm adds to every limit, which names walltime, account and nodes alike.
        return Refusal("refused", suggest_fix(limit[0], account) if "wall" in limit[0].lower() else SIZE_HINT)

    def rehearse(self, script: Path, seconds: float) -> Rehearsal:
        done = run_command(["sbatch", "--test-only", str(script)], seconds)
        printed = done.stderr + done.stdout
        start = re.search(r"to start at (\d{4}-\d\d-\d\d)T(\d\d:\d\d)", printed)
        return Rehearsal(done.returncode == 0, printed, (start[1], start[2]) if start else None)

    def read_release(self, seconds: float) -> str:
        release = command_output(["scontrol", "--version"], seconds).strip()
        self.find_by_id(["0"], seconds)  # of a job that there is not, so that sacct is asked too
        return release or "slurm"

    def read_limits(self, seconds: float) -> SchedulerLimits:
        partitions = command_output(["scontrol", "show", "partition", "--oneliner"], seconds)
        user = user_name()
        commands = (
            ["sacctmgr", "-nP", "show", "qos", "format=Name,MaxWall,MaxTRES,MinTRES,MaxJobsPU,MaxSubmitPU"],
            ["sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=Account,QOS,Partition"],
            ["sacctmgr", "-nP", "show", "user", user, "format=DefaultAccount"],
        )
        try:
            qos, accounts, defaults = (command_output(command, seconds) for command in commands)
        except SchedulerUnreachable:  # there is no data base of accounts, or it is down
            return parse_limits(partitions, None, None, "")
        return parse_limits(partitions, qos, accounts, defaults)

    def read_queues(self, seconds: float) -> list[QueueFacts]:
        sinfo = command_output(["sinfo", "-h", "-o", "%P|%a|%l|%D|%c|%m|%G"], seconds)
        return parse_queues(sinfo, command_output(["scontrol", "show", "partition", "-o"], seconds))

    def draft(self, main: QueueFacts) -> SiteDraft:
        options = ["exclusive: false      # ??? true where jobs get whole nodes"]
        options += [f'directives: ["--gpus-per-node={main.gpus}"]'] if main.gpus else []
        return SiteDraft(options, "srun", LAUNCH_FLAGS)


# ----------------------------------------------------------------------------------------------------------------- jobs
def query_accounting(options: list[str], seconds: float) -> list[JobStatus]:
    """Query sacct for ended jobs. Accounting may be off; jobs that it calls active are not, as squeue no longer lists them."""
    try:
        return [job for job in parse_sacct(command_output([*SACCT_COMMAND, *options], seconds)) if not job.is_active]
    except SchedulerUnreachable:
        return []


def parse_squeue(text: str) -> list[JobStatus]:
    found = []
    for line in text.splitlines():
        parts = line.split("|", 4)  # the name is last, as it may hold anything
        if len(parts) == 5:
            id, state, reason, nodes, name = parts
            state = STATES.get(state, "RUNNING")
            hopeless = state == "PENDING" and reason in HOPELESS_REASONS
            found.append(JobStatus(id, name, state, reason, nodes, is_hopeless=hopeless))
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
            found.append(JobStatus(id, name, STATES.get(word, "RUNNING"), reason, nodes, ended))
    return found


# --------------------------------------------------------------------------------------------------------------- limits
def parse_limits(partitions: str, qos: str | None, accounts: str | None, defaults: str) -> SchedulerLimits:
    """Parse the output of scontrol and sacctmgr."""
    rules = parse_qos(qos) if qos else None
    queues, default = {}, ""
    for line in partitions.splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        name = fields.get("PartitionName")
        if not name:
            continue
        limit = parse_partition(fields)
        if rules and (rule := rules.get(fields.get("QoS", "N/A"))):
            limit = stricter_limit(limit, rule)
        queues[name] = limit
        default = name if fields.get("Default") == "YES" else default
    qos_of_account: dict[str, tuple[str, ...]] | None = None
    if accounts is not None:
        qos_of_account = {}
        for line in accounts.splitlines():
            account, allowed, *_ = [*line.split("|"), "", ""]
            before = qos_of_account.get(account, ())
            qos_of_account[account] = tuple(dict.fromkeys((*before, *filter(None, allowed.split(",")))))
    return SchedulerLimits(queues, default, rules, qos_of_account, next(iter(defaults.split()), ""))


def parse_partition(fields: dict[str, str]) -> QueueLimit:
    state, allowed = fields.get("State", "UP"), fields.get("AllowAccounts", "ALL")
    whole = parse_whole_number(fields.get("TotalNodes", ""))
    most = parse_whole_number(fields.get("MaxNodes", ""))
    return QueueLimit(
        fewest=parse_whole_number(fields.get("MinNodes", "")) or None,
        most=min((n for n in (whole, most) if n), default=None),
        seconds=parse_duration(fields.get("MaxTime", "UNLIMITED")),
        closed="" if state == "UP" else f"is {state.lower()}",
        accounts=None if allowed == "ALL" else tuple(allowed.split(",")),
    )


def parse_qos(text: str) -> dict[str, QueueLimit]:
    limits = {}
    for line in text.splitlines():
        name, wall, most, fewest, running, queued, *_ = [*line.split("|"), *[""] * 6]
        limits[name] = QueueLimit(
            parse_tres_nodes(fewest),
            parse_tres_nodes(most),
            parse_duration(wall) if wall else None,
            parse_whole_number(running),
            parse_whole_number(queued),
        )
    return limits


def parse_tres_nodes(text: str) -> int | None:
    found = re.search(r"(?:^|,)node=(\d+)", text)
    return int(found[1]) if found else None


def parse_duration(limit: str) -> int | None:
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


# --------------------------------------------------------------------------------------------------------------- queues
def parse_queues(sinfo: str, scontrol: str) -> list[QueueFacts]:
    limits: dict[str, dict[str, str]] = {}
    for line in scontrol.splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        limits[fields.get("PartitionName", "")] = fields
    found: dict[str, QueueFacts] = {}
    for line in sinfo.splitlines():
        name, up, limit, nodes, cores, memory, gres = (word.strip() for word in line.split("|"))
        plain = name.rstrip("*")
        if up != "up":
            continue
        count, model = parse_gres(gres)
        facts = QueueFacts(
            plain,
            name.endswith("*"),
            max(1, leading_number(limits.get(plain, {}).get("MinNodes", "1"))),
            leading_number(nodes),
            parse_duration(limit),
            leading_number(cores),
            leading_number(memory) / 1000,
            count,
            model,
        )
        if plain in found:  # nodes of another kind in the same partition: what all of them have
            other = found[plain]
            facts = facts._replace(
                most=facts.most + other.most,
                cores=min(facts.cores, other.cores),
                gpus=min(facts.gpus, other.gpus),
                memory_gb=min(facts.memory_gb, other.memory_gb),
                model=other.model or facts.model,
            )
        found[plain] = facts
    for name, one in found.items():
        most = limits.get(name, {}).get("MaxNodes", "UNLIMITED")
        found[name] = one._replace(most=min(one.most, int(most)) if most.isdigit() else one.most)
    return list(found.values())


def parse_gres(gres: str) -> tuple[int, str]:
    """Return number and model of GPUs of gpu:4, gpu:a100:4(S:0-1) or (null)."""
    found = re.findall(r"gpu(?::([A-Za-z][^:,(]*))?:(\d+)", gres)
    return sum(int(count) for _, count in found), next((model for model, _ in found if model), "")
