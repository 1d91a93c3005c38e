"""qstat, qselect and pbsnodes of the stand-in for PBS: which jobs they list, in which form, and how they exit.

Facts are from qstat.c, qselect.c and req_stat.c of OpenPBS 23.06. Without -E qstat sends a request for each id, and its JSON
holds the first job alone; with -E it sends one, which fails only if there is none of the jobs.
"""

from __future__ import annotations

import getopt
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from tests.support.pbs.scheduling import describe_vnodes, free_cores
from tests.support.pbs.store import (
    FINISHED,
    NO_HISTORY,
    SERVER,
    UNKNOWN_JOB,
    UNKNOWN_QUEUE,
    VERSION,
    Job,
    PbsError,
    Store,
    full_id,
    is_job_id,
    user_name,
)
from tests.support.pbs.submission import describe_variables

QSTAT_OPTIONS = "ainpqrstwxu:fGHJMQEBW:T1F:D:"
QSTAT_USAGE = """usage:
qstat [-f] [-J] [-p] [-t] [-x] [-E] [-F format | -w] [-D delim] [ job_identifier... | destination... ]
qstat [-a|-i|-r|-H|-T] [-J] [-t] [-u user] [-n] [-s] [-G|-M] [-1] [-w]
\t[ job_identifier... | destination... ]
qstat -Q [-f] [-F format] [-D delim] [ destination... ]
qstat -q [-G|-M] [ destination... ]
qstat -B [-f] [-F format] [-D delim] [ server_name... ]
qstat --version"""
QSELECT_OPTIONS = "a:A:c:h:HJl:N:p:P:q:r:s:t:Tu:x"
QSELECT_USAGE = """usage: qselect [-a [op]date_time] [-A account_string] [-c [op]interval]
\t[-h hold_list] [-H] [-J] [-l resource_list] [-N name] [-p [op]priority]
\t[-P project] [-q destination] [-r y|n] [-s states] [-t subopt[op]date] [-T] [-u user_name] [-x]
       qselect --version"""
PBSNODES_OPTIONS = "acCd:f:F:D:HjlLoO:rs:Sv:w"
PBSNODES_USAGE = """usage:
\tpbsnodes [-s server][-F format][-D delim]{-a|node[ node...]}"""


def qstat(store: Store, words: list[str]) -> int:
    old = "no-express" in store.conf["bugs"]
    pairs, operands = getopt.gnu_getopt(words, QSTAT_OPTIONS.replace("E", "") if old else QSTAT_OPTIONS)
    options = dict(pairs)
    if "-B" in options:
        print_all(options, "Server", {SERVER: describe_server(store)})
        return 0
    if "-Q" in options:
        return print_queues(store, options, operands)
    return print_jobs(store, options, operands)


# ----------------------------------------------------------------------------------------------------------------- jobs
def print_jobs(store: Store, options: dict[str, str], ids: list[str]) -> int:
    found: dict[str, Job] = {}
    code = 0
    for request in make_requests(ids, "-E" in options):
        try:
            found |= {job["id"]: job for job in answer(store, request, "-x" in options)}
        except PbsError as error:
            id = full_id(request[-1]) if request else ""
            print(f"qstat: {describe_error(error, id)}", file=sys.stderr)
            code = 0 if error.number == NO_HISTORY else error.code
    if "-F" in options and "-E" not in options and ids:
        found = dict(list(found.items())[:1])
    if "-f" in options:
        print_all(options, "Jobs", {id: describe_job(job) for id, job in found.items()}, store.conf["bugs"])
    elif found:
        print_table(found)
    return code


def make_requests(ids: list[str], express: bool) -> list[list[str]]:
    """Return the ids of each request; one without ids is for all jobs."""
    return [sorted(ids)] if express or not ids else [[id] for id in ids]


def answer(store: Store, ids: list[str], past: bool) -> list[Job]:
    """Answer one request; it fails if it names jobs and not one of them is there."""
    if past and not store.conf["history"]:
        raise PbsError("PBS is not configured to maintain job history", NO_HISTORY)
    if not ids:
        return [job for job in store.jobs() if past or job["state"] != "F"]
    found: list[Job] = []
    error: PbsError | None = None
    for id in ids:
        if not is_job_id(id):
            raise PbsError("Unknown queue", UNKNOWN_QUEUE)
        try:
            job = store.load(id)
        except PbsError:
            error = PbsError("Unknown Job Id", UNKNOWN_JOB)
            continue
        if job["state"] == "F" and not past:
            error = PbsError("Job has finished", FINISHED)
        else:
            found.append(job)
    if error and not found:
        raise error
    return found


def describe_error(error: PbsError, id: str) -> str:
    if error.number == FINISHED:
        return f"{id} {error}, use -x or -H to obtain historical job information"
    return f"{error} {id}"


def describe_job(job: Job) -> dict[str, Any]:
    times = {"ctime": "ctime", "mtime": "ctime", "qtime": "ctime", "stime": "stime"}
    when = {name: time.ctime(job[key]) for name, key in times.items() if key in job}
    shown = {"Job_Name": job["name"], "Job_Owner": f"{user_name()}@{SERVER}", "job_state": job["state"]}
    shown |= {"queue": job["queue"], "server": SERVER, "Checkpoint": "u", "Rerunable": "False", "run_count": 1} | when
    if "hosts" in job:
        shown["exec_host"] = "+".join(f"{host}/0*{chunk['ncpus']}" for host, chunk in zip(job["hosts"], job["chunks"]))
        shown["exec_vnode"] = describe_vnodes(job, job["hosts"])
    if "sid" in job:
        shown["session_id"] = job["sid"]
    if job["comment"]:
        shown["comment"] = job["comment"] + {"F": " and finished"}.get(job["state"], "")
    if job["state"] == "F" and job.get("status"):
        shown["comment"] = f"{job['comment']} and failed"
    if "status" in job:
        shown["Exit_status"] = job["status"]
    shown["Resource_List"] = job["resources"] | {"nodect": len(job["chunks"])}
    shown["Variable_List"] = describe_variables(job)
    return shown


def print_all(options: dict[str, str], title: str, found: dict[str, dict[str, Any]], bugs: list[str] = []) -> None:  # noqa: B006
    """Print objects with all their attributes: as JSON, or in lines of which a tab continues the one before."""
    if options.get("-F", "").lower() == "json":
        head = {"timestamp": int(time.time()), "pbs_version": VERSION, "pbs_server": SERVER}
        text = json.dumps(head | ({title: found} if found else {}), indent=4)
        print(text.replace('"PBS_O_PATH":', '"PROMPT":"\\e[0m", "PBS_O_PATH":') if "bad-json" in bugs else text)
        return
    for id, shown in found.items():
        print({"Jobs": "Job Id", "Server": "Server", "Queue": "Queue"}[title] + f": {id}")
        for name, value in flatten(shown):
            print(f"    {name} = {value[:60]}" + "".join(f"\n\t{value[k : k + 60]}" for k in range(60, len(value), 60)))
        print()


def flatten(shown: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in shown.items():
        if name == "Variable_List":
            yield name, ",".join(f"{key}={each}" for key, each in value.items())
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", str(each)) for key, each in value.items())
        else:
            yield name, str(value)


def print_table(found: dict[str, Job]) -> None:
    print("Job id            Name             User              Time Use S Queue")
    print("----------------  ---------------- ----------------  -------- - -----")
    for id, job in found.items():
        print(f"{id:<17} {job['name'][:16]:<16} {user_name()[:16]:<16}  {'0':>8} {job['state']} {job['queue']}")


def qselect(store: Store, words: list[str]) -> int:
    pairs, rest = getopt.getopt(words, QSELECT_OPTIONS)
    if rest:
        raise getopt.GetoptError("too many operands")
    options = dict(pairs)
    try:
        jobs = answer(store, [], "-x" in options or "-H" in options)
    except PbsError as error:
        print(f"qselect: {error}", file=sys.stderr)
        return 0
    states, name = options.get("-s", ""), options.get("-N")
    for job in jobs:
        is_wanted = options.get("-u", user_name()) == user_name() and name in (None, job["name"])
        if is_wanted and (not states or job["state"] in states) and options.get("-q", job["queue"]) == job["queue"]:
            print(job["id"])
    return 0


# ------------------------------------------------------------------------------------------------------------ the server
def print_queues(store: Store, options: dict[str, str], names: list[str]) -> int:
    queues = describe_queues(store)
    if unknown := [name for name in names if name not in queues]:
        print(f"qstat: Unknown queue {unknown[0]}", file=sys.stderr)
        return UNKNOWN_QUEUE & 255
    print_all(options, "Queue", {name: queues[name] for name in names or queues})
    return 0


def describe_queues(store: Store) -> dict[str, dict[str, Any]]:
    found = {}
    jobs = store.jobs()
    for name, limits in store.conf["queues"].items():
        shown: dict[str, Any] = {"queue_type": "Execution"}
        shown["total_jobs"] = sum(job["queue"] == name and job["state"] != "F" for job in jobs)
        if "nodes" in limits:
            low, high = limits["nodes"]
            shown |= {"resources_max": {"nodect": high}, "resources_min": {"nodect": low}}
        if "walltime" in limits:
            shown.setdefault("resources_max", {})["walltime"] = limits["walltime"]
        for kind in {"max_run", "max_queued"} & limits.keys():
            shown[kind] = f"[u:PBS_GENERIC={limits[kind]}]"
        if "acl_users" in limits:
            shown |= {"acl_user_enable": "True", "acl_users": ",".join(limits["acl_users"])}
        found[name] = shown | {key: str(limits.get(key, True)) for key in ("enabled", "started")}
    return found


def describe_server(store: Store) -> dict[str, Any]:
    conf = store.conf
    jobs = sum(job["state"] != "F" for job in store.jobs())
    shown = {"server_state": "Active", "server_host": SERVER, "scheduling": "True", "total_jobs": jobs}
    shown |= {"default_queue": "workq", "log_events": 511, "mailer": "/usr/sbin/sendmail", "mail_from": "adm"}
    shown |= {"query_other_jobs": "True", "resources_default": {"ncpus": 1}, "default_chunk": {"ncpus": 1}}
    shown |= {"scheduler_iteration": 600, "flatuid": "True", "resv_enable": "True", "node_fail_requeue": 310}
    shown |= {"acl_roots": "root"} if conf["acl_roots"] else {}
    shown |= {"job_history_enable": "True"} if conf["history"] else {}
    return shown | {"eligible_time_enable": "False", "max_job_sequence_id": 9999999, "pbs_version": VERSION}


def pbsnodes(store: Store, words: list[str]) -> int:
    pairs, _ = getopt.gnu_getopt(words, PBSNODES_OPTIONS)
    conf, free, shown = store.conf, free_cores(store, store.jobs()), {}
    for host in store.hosts():
        has = {"arch": "linux", "host": host, "mem": "16777216kb", "ncpus": conf["ncpus"], "vnode": host}
        state = "free" if free[host] > 0 else "job-busy"
        shown[host] = {"Mom": host, "Port": 15002, "pbs_version": VERSION, "ntype": "PBS", "state": state}
        shown[host] |= {"resources_available": has, "resources_assigned": {"ncpus": conf["ncpus"] - free[host]}}
    head = {"timestamp": int(time.time()), "pbs_version": VERSION, "pbs_server": SERVER}
    print(json.dumps(head | {"nodes": shown}, indent=4) if dict(pairs).get("-F") else "\n".join(shown))
    return 0
