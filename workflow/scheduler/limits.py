"""The limits of the scheduler's queues, QOS and accounts, compared with what a site's file says about them.

A limit that the scheduler does not report is None, and nothing is concluded from it. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

from workflow.config.field_problems import suggest
from workflow.config.site import Queue
from workflow.config.walltime import format_walltime, to_seconds


class QueueLimit(NamedTuple):
    """Limits of one queue, for one job of one user."""

    fewest: int | None = None  # nodes
    most: int | None = None  # nodes
    seconds: int | None = None
    running: int | None = None  # running jobs of a user
    queued: int | None = None  # waiting jobs of a user
    closed: str = ""  # why it takes no jobs
    accounts: tuple[str, ...] | None = None  # accounts that may use it; None: all


class SchedulerLimits(NamedTuple):
    """Limits that one scheduler reports."""

    queues: dict[str, QueueLimit]  # partitions of Slurm, queues of PBS
    default: str  # queue of jobs that name none; "" = not reported
    qos: dict[str, QueueLimit] | None = None  # None: it keeps no accounts, or does not report them
    accounts: dict[str, tuple[str, ...]] | None = None  # accounts of this user -> the QOS that each may use
    default_account: str = ""  # of jobs that name none
    routes: dict[str, tuple[str, ...]] = {}  # of PBS: a queue -> the queues to which its jobs are routed


class Mismatch(NamedTuple):
    """Field of a site's file that allows more than the scheduler does, and how to correct it."""

    field: str  # of the queue, in the site's file; "" = the queue itself
    found: str
    fix: str


def parse_whole_number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def stricter_limit(one: QueueLimit, other: QueueLimit) -> QueueLimit:
    """Combine two limits: the stricter value of each field that both report."""
    fewest = max((n for n in (one.fewest, other.fewest) if n is not None), default=None)
    return one._replace(
        fewest=fewest,
        most=smaller(one.most, other.most),
        seconds=smaller(one.seconds, other.seconds),
        running=smaller(one.running, other.running),
        queued=smaller(one.queued, other.queued),
    )


def smaller(one: int | None, other: int | None) -> int | None:
    return min((n for n in (one, other) if n is not None), default=None)


def scheduler_name(name: str, queue: Queue, reported: SchedulerLimits) -> str:
    """Return the scheduler's own name of a queue of the site's file."""
    return name if queue.partition is None else queue.partition or reported.default


def find_mismatches(name: str, queue: Queue, account: str | None, reported: SchedulerLimits) -> list[Mismatch]:
    """Find what would keep jobs of one queue of the file from running. The file may allow less than the scheduler."""
    partition = scheduler_name(name, queue, reported)
    if partition and partition not in reported.queues:
        return [Mismatch("partition", f"there is no {partition!r}", suggest(partition, list(reported.queues)))]
    if queue.qos and reported.qos is not None and queue.qos not in reported.qos:
        return [Mismatch("qos", f"there is no QOS {queue.qos!r}", suggest(queue.qos, list(reported.qos)))]
    limit = reported.queues.get(partition, QueueLimit())
    if queue.qos and reported.qos:
        limit = stricter_limit(limit, reported.qos[queue.qos])
    found = []
    if limit.closed:
        found.append(Mismatch("", f"{partition} {limit.closed} now", "wait, or name another: --set train.queue=NAME"))
    if limit.accounts is not None and account is not None and account not in limit.accounts:
        allowed = ", ".join(limit.accounts[:4])
        found.append(Mismatch("", f"account {account} may not use it", f"accounts that may: {allowed}"))
    own_qos = (reported.accounts or {}).get(account or reported.default_account)
    if queue.qos and own_qos and queue.qos not in own_qos:
        found.append(Mismatch("qos", f"your account may not use the QOS {queue.qos}", f"yours: {', '.join(own_qos)}"))
    routed = [reported.queues[n] for n in reported.routes.get(partition, ()) if n in reported.queues]
    if routed and not any(is_within(queue, each) for each in routed):
        listed = "; ".join(format_limit(each) for each in routed)
        found.append(
            Mismatch(
                "nodes", f"{partition} routes to queues of {listed}", "none of them accepts all that the file allows"
            )
        )
    return found + exceeded_limits(queue, limit)


def is_within(queue: Queue, limit: QueueLimit) -> bool:
    return not exceeded_limits(queue, limit)


def exceeded_limits(queue: Queue, limit: QueueLimit) -> list[Mismatch]:
    """Find the fields in which the file allows more than the scheduler."""
    found, (low, high) = [], queue.nodes
    if limit.seconds is not None and to_seconds(queue.max_walltime) > limit.seconds:
        longest = format_walltime(limit.seconds)
        found.append(
            Mismatch(
                "max_walltime",
                f"max_walltime is {queue.max_walltime}, the scheduler allows {longest}",
                f'max_walltime: "{longest}"',
            )
        )
    if limit.most is not None and low > limit.most:
        found.append(Mismatch("nodes", f"{low} nodes or more, the scheduler gives {limit.most}", "remove this queue"))
    elif limit.most is not None and high > limit.most:
        found.append(
            Mismatch("nodes", f"up to {high} nodes, the scheduler gives {limit.most}", f"nodes: [{low}, {limit.most}]")
        )
    if limit.fewest is not None and low < limit.fewest:
        found.append(
            Mismatch(
                "nodes",
                f"{low} nodes or more, the scheduler takes {limit.fewest} or more",
                f"nodes: [{limit.fewest}, {max(high, limit.fewest)}]",
            )
        )
    if limit.running is not None and (queue.max_running or 10**9) > limit.running:
        found.append(
            Mismatch(
                "max_running",
                f"the scheduler runs {limit.running} jobs of a user at a time",
                f"max_running: {limit.running}",
            )
        )
    return found


def format_limit(limit: QueueLimit) -> str:
    low, high = limit.fewest or 1, limit.most
    time = f", {format_walltime(limit.seconds)}" if limit.seconds else ""
    return (f"{low} to {high} nodes" if high else f"{low} nodes or more") + time


def check_account(given: str | None, required: bool, reported: SchedulerLimits) -> tuple[bool | None, str, str]:
    """Return whether the account is valid (None = unknown), what was found, and the fix."""
    if reported.accounts is None:
        reason = "this scheduler reports no accounts, so only a submitted job shows whether it is accepted"
        return None, f"{given or 'none is given'}; {reason}", ""
    listed = sorted(reported.accounts)
    if given is None and reported.default_account and not required:
        return True, f"{reported.default_account}, which is yours by default", ""
    if given is None:
        return False, "none is given", f"--set account={reported.default_account or next(iter(listed), 'ACCOUNT')}"
    if given not in reported.accounts:
        close = suggest(given, listed) if listed else "you have none here; ask who runs the project"
        return False, f"{given} is not one of your accounts", close
    return True, given, ""
