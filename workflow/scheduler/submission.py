"""The request for one job in words that all schedulers share, and the meaning of a refusal. Pure."""

from __future__ import annotations

import re
import shlex
from typing import Literal, NamedTuple

SCRIPT_NAME = "job.sh"  # and beside it job.out: what the script itself prints
OUTPUT_NAME = "job.out"
TRANSIENT_WORDS = re.compile(
    "unable to contact|connection (refused|reset|timed out)|connect failure|timed out|time.?out|temporarily|try again"
    "|cannot connect|cannot send|socket|communication|slurmctld|no permission to contact|server (is )?(busy|down)"
    "|transport endpoint|zero bytes",
    re.I,
)
JOB_COUNT_LIMIT_WORDS = re.compile(
    "maxsubmit|max_?queued|would exceed|exceeds? (the )?(queue|user|group|max).*(limit|number)|submit limit"
    "|too many jobs|job limit|limit on .*jobs|maximum number of jobs",
    re.I,
)


class JobHead(NamedTuple):
    """Request for one job: all that the head of its script says."""

    name: str
    partition: str  # "" = the default
    account: str | None
    qos: str | None
    nodes: int
    ranks_per_node: int
    threads: int  # of each rank
    slots: int  # stages without ranks that run at a time on one node; 0 = it has ranks
    cores: int  # of a node
    seconds: int
    walltime: str  # the same, as HH:MM:SS
    avoid: tuple[str, ...]  # nodes
    directives: tuple[str, ...]  # of the site's file


class Refusal(NamedTuple):
    """Meaning of a command's failure to submit a job."""

    action: Literal["refused", "wait", "unreachable"]  # final; it holds too many of our jobs for now; nothing is known
    hint: str = ""


def judge_refusal(words: str, account: str | None) -> Refusal:
    """Judge a refusal by words that schedulers have in common."""
    if JOB_COUNT_LIMIT_WORDS.search(words):
        return Refusal("wait")
    if TRANSIENT_WORDS.search(words):
        return Refusal("unreachable")
    return Refusal("refused", suggest_fix(words, account))


def suggest_fix(words: str, account: str | None) -> str:
    """Suggest what to change in the site's file or on the command line."""
    lowered = words.lower()
    if "wall" in lowered or "time limit" in lowered:
        return "the walltime may be longer than the queue allows: look at `max_walltime` of the site's file"
    if "account" in lowered or "project" in lowered or "allocation" in lowered:
        used = f"it was {shlex.quote(account)}" if account else "none was given"
        return f"the account may be wrong ({used}): --set account=ACCOUNT"
    if "partition" in lowered or "queue" in lowered or "qos" in lowered:
        return "the queue may be wrong: look at `queues` of the site's file, or --set train.queue=NAME"
    if "node" in lowered or "requested" in lowered or "resource" in lowered:
        return "no node may match the site's file: look at its `node` and `queues`, and at the scheduler's message"
    return "look at the script (job.sh of the attempt), submit it by hand, and correct the site's file"
