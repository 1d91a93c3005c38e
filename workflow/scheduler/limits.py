"""What the scheduler says that it allows: its queues, QOS and accounts, held against what a site's file says of them.

Parsing and comparing are pure; `slurm` and `pbs` ask. What a scheduler does not tell is None, and nothing is concluded from it.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from workflow.config.site import Queue
from workflow.config.walltime import seconds, walltime
from workflow.config.yaml_file import nearest
from workflow.scheduler import query


class Limit(NamedTuple):
    """Of one queue for one job of one user."""

    fewest: int | None = None
    most: int | None = None  # nodes
    seconds: int | None = None
    running: int | None = None  # jobs of a user at a time
    queued: int | None = None
    closed: str = ""  # why it takes no jobs
    accounts: tuple[str, ...] | None = None  # that may use it; None: all


class Known(NamedTuple):
    """All that one scheduler told."""

    queues: dict[str, Limit]  # partitions of Slurm, queues of PBS
    default: str  # queue of jobs that name none; "" = not told
    qos: dict[str, Limit] | None = None  # None: it keeps no accounts, or does not tell
    accounts: dict[str, tuple[str, ...]] | None = None  # of this user -> the QOS that each may use
    own: str = ""  # the account of jobs that name none
    routes: dict[str, tuple[str, ...]] = {}  # of PBS: a queue -> those that its jobs go on to


class Complaint(NamedTuple):
    field: str  # of the queue, in the site's file; "" = the queue itself
    found: str
    fix: str


# ------------------------------------------------------------------------------------------------------------- Slurm
def slurm(timeout: float) -> Known:
    """Raises scheduler.Unreachable if even its partitions cannot be had."""
    partitions = query.answer(["scontrol", "show", "partition", "--oneliner"], timeout)
    me = query.user()
    asked = (
        ["sacctmgr", "-nP", "show", "qos", "format=Name,MaxWall,MaxTRES,MinTRES,MaxJobsPU,MaxSubmitPU"],
        ["sacctmgr", "-nP", "show", "assoc", f"user={me}", "format=Account,QOS,Partition"],
        ["sacctmgr", "-nP", "show", "user", me, "format=DefaultAccount"],
    )
    try:
        qos, accounts, own = (query.answer(command, timeout) for command in asked)
    except query.Unreachable:  # no data base of accounts, or it is away
        return of_slurm(partitions, None, None, "")
    return of_slurm(partitions, qos, accounts, own)


def of_slurm(partitions: str, qos: str | None, accounts: str | None, own: str) -> Known:
    rules = parse_qos(qos) if qos else None
    queues, default = {}, ""
    for line in partitions.splitlines():
        said = dict(word.split("=", 1) for word in line.split() if "=" in word)
        name = said.get("PartitionName")
        if not name:
            continue
        limit = partition(said)
        if rules and (rule := rules.get(said.get("QoS", "N/A"))):
            limit = tighter(limit, rule)
        queues[name] = limit
        default = name if said.get("Default") == "YES" else default
    mine: dict[str, tuple[str, ...]] | None = None
    if accounts is not None:
        mine = {}
        for line in accounts.splitlines():
            account, allowed, *_ = [*line.split("|"), "", ""]
            mine[account] = tuple(dict.fromkeys((*mine.get(account, ()), *filter(None, allowed.split(",")))))
    return Known(queues, default, rules, mine, next(iter(own.split()), ""))


def partition(said: dict[str, str]) -> Limit:
    state, allowed = said.get("State", "UP"), said.get("AllowAccounts", "ALL")
    whole = whole_number(said.get("TotalNodes", ""))
    most = whole_number(said.get("MaxNodes", ""))
    return Limit(
        fewest=whole_number(said.get("MinNodes", "")) or None,
        most=min((n for n in (whole, most) if n), default=None),
        seconds=query.slurm_seconds(said.get("MaxTime", "UNLIMITED")),
        closed="" if state == "UP" else f"is {state.lower()}",
        accounts=None if allowed == "ALL" else tuple(allowed.split(",")),
    )


def parse_qos(text: str) -> dict[str, Limit]:
    found = {}
    for line in text.splitlines():
        name, wall, most, fewest, running, queued, *_ = [*line.split("|"), *[""] * 6]
        found[name] = Limit(
            tres_nodes(fewest),
            tres_nodes(most),
            query.slurm_seconds(wall) if wall else None,
            whole_number(running),
            whole_number(queued),
        )
    return found


def tres_nodes(text: str) -> int | None:
    found = re.search(r"(?:^|,)node=(\d+)", text)
    return int(found[1]) if found else None


def whole_number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def tighter(one: Limit, other: Limit) -> Limit:
    """Where both say something, what allows less."""

    def least(name: str) -> int | None:
        return min((v for v in (getattr(one, name), getattr(other, name)) if v is not None), default=None)

    fewest = max((v for v in (one.fewest, other.fewest) if v is not None), default=None)
    return one._replace(fewest=fewest, **{name: least(name) for name in ("most", "seconds", "running", "queued")})


# --------------------------------------------------------------------------------------------------------------- PBS
def pbs(timeout: float) -> Known:
    said = query.answer(["qstat", "-Q", "-f", "-F", "json"], timeout)
    try:
        return of_pbs(said)
    except (ValueError, AttributeError):  # some versions write what is not JSON
        raise query.Unreachable(f"qstat: its list of queues could not be read: {said[:60].strip()!r}") from None


def of_pbs(queues: str) -> Known:
    found, routes = {}, {}
    for name, said in json.loads(queues, strict=False).get("Queue", {}).items():
        most, least = said.get("resources_max", {}), said.get("resources_min", {})
        time = str(most.get("walltime", ""))
        shut = [word for word in ("enabled", "started") if str(said.get(word, "True")) != "True"]
        found[name] = Limit(
            fewest=whole_number(str(least.get("nodect", ""))),
            most=whole_number(str(most.get("nodect", ""))),
            seconds=seconds(time) if re.fullmatch(r"\d+:\d\d:\d\d", time) else None,
            running=each_user(str(said.get("max_run", ""))),
            queued=each_user(str(said.get("max_queued", ""))),
            closed=f"is not {shut[0]}" if shut else "",
        )
        if said.get("queue_type") == "Route":
            routes[name] = tuple(filter(None, re.split(r"[\s,]+", str(said.get("route_destinations", "")))))
    return Known(found, "", routes=routes)


def each_user(text: str) -> int | None:
    """[u:PBS_GENERIC=2]: any user"""
    found = re.search(r"u:PBS_GENERIC=(\d+)", text)
    return int(found[1]) if found else None


# -------------------------------------------------------------------------------------------------------- held against
def place(name: str, queue: Queue, known: Known) -> str:
    """The scheduler's own name of it."""
    return name if queue.partition is None else queue.partition or known.default


def complaints(name: str, queue: Queue, account: str | None, known: Known) -> list[Complaint]:
    """Of one queue of the file: what would keep its jobs from running. The file may well allow less than the scheduler."""
    there = place(name, queue, known)
    if there and there not in known.queues:
        return [Complaint("partition", f"there is no {there!r}", nearest(there, list(known.queues)))]
    if queue.qos and known.qos is not None and queue.qos not in known.qos:
        return [Complaint("qos", f"there is no QOS {queue.qos!r}", nearest(queue.qos, list(known.qos)))]
    limit = known.queues.get(there, Limit())
    if queue.qos and known.qos:
        limit = tighter(limit, known.qos[queue.qos])
    found = []
    if limit.closed:
        found.append(Complaint("", f"{there} {limit.closed} now", "wait, or name another: --set train.queue=NAME"))
    if limit.accounts is not None and account is not None and account not in limit.accounts:
        such = ", ".join(limit.accounts[:4])
        found.append(Complaint("", f"account {account} may not use it", f"accounts that may: {such}"))
    mine = (known.accounts or {}).get(account or known.own)
    if queue.qos and mine and queue.qos not in mine:
        found.append(Complaint("qos", f"your account may not use the QOS {queue.qos}", f"yours: {', '.join(mine)}"))
    routed = [known.queues[n] for n in known.routes.get(there, ()) if n in known.queues]
    if routed and not any(fits(queue, each) for each in routed):
        listed = "; ".join(told(each) for each in routed)
        found.append(
            Complaint("nodes", f"{there} leads to queues of {listed}", "no one of them takes all that the file allows")
        )
    return found + beyond(queue, limit)


def fits(queue: Queue, limit: Limit) -> bool:
    return not beyond(queue, limit)


def beyond(queue: Queue, limit: Limit) -> list[Complaint]:
    """Where the file allows more than there is."""
    found, (low, high) = [], queue.nodes
    if limit.seconds is not None and seconds(queue.max_walltime) > limit.seconds:
        longest = walltime(limit.seconds)
        found.append(
            Complaint(
                "max_walltime",
                f"max_walltime is {queue.max_walltime}, the scheduler allows {longest}",
                f'max_walltime: "{longest}"',
            )
        )
    if limit.most is not None and low > limit.most:
        found.append(Complaint("nodes", f"{low} nodes or more, the scheduler gives {limit.most}", "remove this queue"))
    elif limit.most is not None and high > limit.most:
        found.append(
            Complaint("nodes", f"up to {high} nodes, the scheduler gives {limit.most}", f"nodes: [{low}, {limit.most}]")
        )
    if limit.fewest is not None and low < limit.fewest:
        found.append(
            Complaint(
                "nodes",
                f"{low} nodes or more, the scheduler takes {limit.fewest} or more",
                f"nodes: [{limit.fewest}, {max(high, limit.fewest)}]",
            )
        )
    if limit.running is not None and (queue.max_running or 10**9) > limit.running:
        found.append(
            Complaint(
                "max_running",
                f"the scheduler runs {limit.running} jobs of a user at a time",
                f"max_running: {limit.running}",
            )
        )
    return found


def told(limit: Limit) -> str:
    low, high = limit.fewest or 1, limit.most
    time = f", {walltime(limit.seconds)}" if limit.seconds else ""
    return (f"{low} to {high} nodes" if high else f"{low} nodes or more") + time


def account(given: str | None, required: bool, known: Known) -> tuple[bool | None, str, str]:
    """(good, bad or cannot be told; what is; the fix)"""
    if known.accounts is None:
        return (
            None,
            f"{given or 'none is given'}; this scheduler tells nothing of accounts, its answer to a job will",
            "",
        )
    listed = sorted(known.accounts)
    if given is None and known.own and not required:
        return True, f"{known.own}, which is yours by default", ""
    if given is None:
        return False, "none is given", f"--set account={known.own or next(iter(listed), 'ACCOUNT')}"
    if given not in known.accounts:
        close = nearest(given, listed) if listed else "you have none here; ask who runs the project"
        return False, f"{given} is none of yours", close
    return True, given, ""


KINDS = {"slurm": slurm, "pbs": pbs}
