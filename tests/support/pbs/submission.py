"""qsub of the stand-in for PBS: what it accepts, and what it refuses in which words.

A request that no node can meet is accepted: only the limits of a queue are looked at here.
"""

from __future__ import annotations

import getopt
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.pbs.store import (
    BAD_SELECT,
    BAD_VALUE,
    LIMITS,
    PROTOCOL,
    QUEUE_DISABLED,
    REJECTED_BY_HOOK,
    SERVER,
    TOO_MANY_JOBS,
    UNAUTHORIZED,
    UNKNOWN_QUEUE,
    UNKNOWN_RESOURCE,
    WRONG_USER,
    Job,
    PbsError,
    Store,
    full_id,
    to_seconds,
    user_name,
    write_json,
)

OPTIONS = "a:A:c:C:e:fhIj:J:k:l:m:M:N:o:p:q:r:R:S:u:v:VW:XzP:"
USAGE = """usage: qsub [-a date_time] [-A account_string] [-c interval]
\t[-C directive_prefix] [-e path] [-f ] [-h ] [-I [-X]] [-j oe|eo] [-J X-Y[:Z]]
\t[-k keep] [-l resource_list] [-m mail_options] [-M user_list]
\t[-N jobname] [-o path] [-p priority] [-P project] [-q queue] [-r y|n]
\t[-R o|e|oe] [-S path] [-u user_list] [-v variable_list] [-V ]
\t[-W otherattributes=value...] [-z] [script | -- command [arg1 ...]]
       qsub --version"""
ATTRIBUTES = {"umask", "depend", "block", "stagein", "stageout", "sandbox", "group_list", "run_count", "Resource_List"}
RESOURCES = {"walltime", "select", "place", "filesystems", "mem", "ncpus", "cput"}
CHUNK = {"ncpus", "mpiprocs", "ompthreads", "ngpus", "mem", "system", "host", "vnode"}
PLACES = {"free", "pack", "scatter", "vscatter"}
SHARING = {"excl", "exclhost", "shared"}


def qsub(store: Store, words: list[str]) -> None:
    given, rest = getopt.getopt(words, OPTIONS)
    script = Path(rest[0]).read_text() if rest else sys.stdin.read()
    name = Path(rest[0]).name if rest else "STDIN"
    options, resources = read_options(parse_directives(script), given)
    job = make_job(options, resources, script, options.get("-N", name))
    check_site(store, job)
    with store.locked():
        check_counts(store, job)
        job["id"] = full_id(str(store.next_number()))
        store.save(job)
        lose_answer(store)
    print(job["id"])


def parse_directives(script: str) -> list[tuple[str, str]]:
    """Return the options in a script's head, which ends with its first command."""
    found: list[tuple[str, str]] = []
    for line in script.splitlines():
        if line.startswith("#PBS "):
            found += getopt.getopt(shlex.split(line[5:], comments=True), OPTIONS)[0]
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return found


def read_options(
    directives: list[tuple[str, str]], given: list[tuple[str, str]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return options and resources; those of the command line win."""
    options: dict[str, str] = {}
    resources: dict[str, str] = {}
    for name, value in [*directives, *given]:
        if name == "-l":
            for part in [value] if value.startswith("select") else re.split(r",(?=\w+=)", value):
                key, _, amount = part.partition("=")
                if key not in RESOURCES:
                    raise PbsError(f"Unknown resource Resource_List.{key}", UNKNOWN_RESOURCE)
                resources[key] = amount
        elif name == "-W":
            for part in re.split(r",(?=\w+=)", value):
                key, _, amount = part.partition("=")
                if key not in ATTRIBUTES:
                    raise PbsError(f"Undefined attribute  {key}", 15002)
                options[f"-W {key}"] = amount
        else:
            options[name] = value
    return options, resources


def make_job(options: dict[str, str], resources: dict[str, str], script: str, name: str) -> Job:
    if not re.fullmatch(r"[A-Za-z+][!-~]{0,235}", name):
        raise PbsError("illegal -N value", 2)
    if not re.fullmatch(r"[0-7]{1,4}", options.get("-W umask", "077")):
        raise PbsError("Illegal attribute or resource value umask", BAD_VALUE)
    return {
        "name": name,
        "state": "Q",
        "queue": options.get("-q") or "workq",
        "account": options.get("-A"),
        "chunks": parse_select(resources.get("select", "1")),
        "place": parse_place(resources.get("place", "free")),
        "walltime": resources.get("walltime"),
        "resources": resources,
        "shell": options.get("-S"),
        "umask": options.get("-W umask", "077"),
        "script": script,
        "cwd": os.getcwd(),
        "env": dict(os.environ),
        "exports": "-V" in options,
        "out": options.get("-o"),
        "err": options.get("-e"),
        "join": options.get("-j"),
        "ctime": time.time(),
        "tasks": [],
        "comment": "",
    }


def parse_select(text: str) -> list[dict[str, Any]]:
    """Return one chunk after the other, as many as requested."""
    chunks: list[dict[str, Any]] = []
    for part in text.split("+"):
        match = re.fullmatch(r"(?:(\d+):?)?((?:\w+=[^:+]+)?(?::\w+=[^:+]+)*)", part)
        if match is None:
            raise PbsError("Illegal attribute or resource value Resource_List.select", BAD_VALUE)
        wanted = dict(each.split("=", 1) for each in match[2].split(":") if each)
        if unknown := wanted.keys() - CHUNK:
            raise PbsError(f'Resource invalid in "select" specification: {min(unknown)}', BAD_SELECT)
        if not all(wanted.get(name, "0").isdigit() for name in ("ncpus", "mpiprocs")):
            raise PbsError("Illegal attribute or resource value Resource_List.select", BAD_VALUE)
        chunk = {name: int(value) if value.isdigit() else value for name, value in wanted.items()}
        chunks += int(match[1] or 1) * [{"ncpus": 1, "mpiprocs": 1} | chunk]
    return chunks


def parse_place(text: str) -> str:
    """Return the arrangement, which may stand before how nodes are shared."""
    parts = text.split(":")
    if not set(parts) <= PLACES | SHARING or len(parts) > 2:
        raise PbsError("Illegal attribute or resource value Resource_List.place", BAD_VALUE)
    return "scatter" if {"scatter", "vscatter"} & set(parts) else "free"


# ------------------------------------------------------------------------------------------------------------- refusals
def check_site(store: Store, job: Job) -> None:
    """Raise in the order in which the hooks and the server look at a job."""
    conf, resources = store.conf, job["resources"]
    if conf["account"] and job["account"] != conf["account"]:
        raise PbsError("Request rejected.  Reason: Project/account not valid", REJECTED_BY_HOOK)
    missing = set(conf["filesystems"]) - set(resources.get("filesystems", "").split(":"))
    if missing:
        raise PbsError("Resource: filesystems is required to be set.", REJECTED_BY_HOOK)
    if not conf["acl_roots"] and os.geteuid() == 0:
        raise PbsError("Bad UID for job execution", WRONG_USER)
    queue = conf["queues"].get(job["queue"])
    if queue is None:
        raise PbsError("Unknown queue", UNKNOWN_QUEUE)
    if not queue.get("enabled", True):
        raise PbsError("Queue is not enabled", QUEUE_DISABLED)
    if user_name() not in queue.get("acl_users", [user_name()]):
        raise PbsError("Unauthorized Request ", UNAUTHORIZED)
    check_limits(queue, job)


def check_limits(queue: dict[str, Any], job: Job) -> None:
    low, high = queue.get("nodes", [1, 10**6])
    limit = queue.get("walltime")
    too_long = limit and to_seconds(job["walltime"] or limit) > to_seconds(limit)
    if not low <= len(job["chunks"]) <= high or too_long:
        raise PbsError("Job violates queue and/or server resource limits", LIMITS)


def check_counts(store: Store, job: Job) -> None:
    """Raise if the user has as many jobs in the queue as the site allows."""
    limit = store.conf["queues"][job["queue"]].get("max_queued", 10**6)
    if sum(other["queue"] == job["queue"] and other["state"] != "F" for other in store.jobs()) >= limit:
        raise PbsError(f"would exceed queue {job['queue']}'s per-user limit", TOO_MANY_JOBS)


def lose_answer(store: Store) -> None:
    """End the connection after the job was taken, as a server does that is stopped at this moment."""
    conf = store.conf
    if conf["lost_answers"]:
        write_json(store.home / "conf.json", conf | {"lost_answers": conf["lost_answers"] - 1})
        raise PbsError("End of File", PROTOCOL)


def describe_variables(job: Job) -> dict[str, str]:
    """Return the environment that qsub sends along: of the submitter's only that with another name, unless -V."""
    known = ("HOME", "LANG", "LOGNAME", "PATH", "MAIL", "SHELL", "TZ")
    sent = {f"PBS_O_{name}": job["env"][name] for name in known if name in job["env"]}
    sent |= {"PBS_O_WORKDIR": job["cwd"], "PBS_O_SYSTEM": "Linux", "PBS_O_QUEUE": job["queue"], "PBS_O_HOST": SERVER}
    return sent | (job["env"] if job["exports"] else {})
