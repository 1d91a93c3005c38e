#!/usr/bin/env python3
"""A stand-in for PBS on one machine: qsub, qstat, qselect, qdel and mpiexec, without a server.

It checks a job as a site would, runs it on free "nodes" (addresses of the loop-back interface), writes PBS_NODEFILE, ends
it at its walltime, and remembers it. Its output follows the manual of OpenPBS and the output of a real server. Its state is
files below $PBS_HOME, where conf.json describes the site.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

HOME = Path(os.environ["PBS_HOME"])
SERVER = "standin"
UNKNOWN_JOB, FINISHED, UNKNOWN_QUEUE, BAD_ACCOUNT, LIMITS, UNKNOWN_RESOURCE = 153, 35, 170, 30, 188, 187
CONF = {
    "nodes": 3,
    "ncpus": 8,
    "kill_delay": 30,
    "account": None,
    "filesystems": [],
    "queues": {"workq": {"nodes": [1, 3], "walltime": "02:00:00"}},
    "bugs": [],
}
RESOURCES = {"walltime", "select", "place", "filesystems", "mem"}
CHUNK = {"ncpus", "mpiprocs", "ngpus", "mem", "system", "host"}


class PbsError(Exception):
    """An error as PBS prints it, with its exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def read_conf() -> dict:
    try:
        return CONF | json.loads((HOME / "conf.json").read_text())
    except FileNotFoundError:
        return CONF


@contextlib.contextmanager
def lock_state():
    with open(HOME / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def job_path(id: str) -> Path:
    return HOME / "jobs" / f"{id.split('.')[0]}.json"


def load_job(id: str) -> dict:
    try:
        return json.loads(job_path(id).read_text())
    except FileNotFoundError:
        raise PbsError(f"Unknown Job Id {id}", UNKNOWN_JOB) from None


def store_job(job: dict) -> None:
    beside = job_path(job["id"]).with_suffix(".tmp")
    beside.write_text(json.dumps(job))
    beside.replace(job_path(job["id"]))


def to_seconds(walltime: str) -> int:
    parts = [int(part) for part in walltime.split(":")]
    return sum(part * 60**k for k, part in enumerate(reversed(parts)))


# ------------------------------------------------------------------------------------------------------------ qsub
def qsub(words: list[str]) -> None:
    script = Path(words[-1])
    lines = script.read_text().splitlines()
    given = [word for line in lines if line.startswith("#PBS ") for word in line[5:].split(None, 1)]
    options: dict[str, str] = {}
    resources: dict[str, str] = {}
    for name, value in zip(*[iter(given + words[:-1])] * 2):  # the command line comes last, and wins
        if name == "-l":
            for part in re.split(r",(?=[a-z]+=)", value) if not value.startswith("select") else [value]:
                key, _, amount = part.partition("=")
                if key not in RESOURCES:
                    raise PbsError(f"Unknown resource: {key}", UNKNOWN_RESOURCE)
                resources[key] = amount
        elif name in ("-N", "-q", "-A", "-o", "-e", "-j", "-r", "-m", "-S", "-k"):
            options[name] = value
        else:
            raise PbsError(f"invalid option -- '{name.lstrip('-')}'", 2)
    chunks = check_request(options, resources)
    with lock_state():
        number = max([first_number(), *(int(each.stem) for each in (HOME / "jobs").glob("*.json"))]) + 1
        id = f"{number}.{SERVER}"
        store_job(
            {
                "id": id,
                "name": options.get("-N", script.name),
                "state": "Q",
                "queue": options.get("-q", "workq"),
                "account": options.get("-A"),
                "chunks": chunks,
                "walltime": resources.get("walltime", "01:00:00"),
                "resources": resources,
                "script": script.read_text(),
                "cwd": os.getcwd(),
                "env": dict(os.environ),
                "out": options.get("-o"),
                "err": options.get("-e"),
                "join": options.get("-j"),
                "ctime": time.time(),
            }
        )
    command = [sys.executable, __file__, "mom", id]
    subprocess.Popen(
        command,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=open(HOME / "mom.log", "a"),
    )
    print(id)


def first_number() -> int:
    """Return the number of the first job: each server has its own, as ranks meet on a port made of the job's number."""
    return zlib.crc32(str(HOME).encode()) % 190 * 100


def check_request(options: dict[str, str], resources: dict[str, str]) -> dict:
    site = read_conf()
    queue = site["queues"].get(options.get("-q", "workq"))
    if queue is None:
        raise PbsError("Unknown queue", UNKNOWN_QUEUE)
    if site["account"] and options.get("-A") != site["account"]:
        raise PbsError("Request rejected. Reason: Project/account not valid", BAD_ACCOUNT)
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,229}", options.get("-N", "x")):
        raise PbsError(f"illegal -N value {options['-N']!r}", 2)
    match = re.fullmatch(r"(\d+)((?::\w+=[^:+]+)*)", resources.get("select", "1"))
    if match is None:
        raise PbsError("Illegal attribute or resource value Resource_List.select", UNKNOWN_RESOURCE)
    chunk = dict(part.split("=", 1) for part in match[2].split(":") if part)
    if unknown := chunk.keys() - CHUNK:
        raise PbsError(f"Unknown resource: {unknown.pop()}", UNKNOWN_RESOURCE)
    if resources.get("place", "free") not in ("free", "scatter", "pack", "excl", "scatter:excl", "vscatter"):
        raise PbsError("Illegal attribute or resource value Resource_List.place", UNKNOWN_RESOURCE)
    missing = set(site["filesystems"]) - set(resources.get("filesystems", "").split(":"))
    if site["filesystems"] and ("filesystems" not in resources or missing):
        raise PbsError("Resource: filesystems is required to be set", BAD_ACCOUNT)
    count = int(match[1])
    if not queue["nodes"][0] <= count <= queue["nodes"][1] or int(chunk.get("ncpus", 1)) > site["ncpus"]:
        raise PbsError("Job violates queue and/or server resource limits", LIMITS)
    if to_seconds(resources.get("walltime", "01:00:00")) > to_seconds(queue["walltime"]):
        raise PbsError("Job violates queue and/or server resource limits", LIMITS)
    return {"count": count, "ncpus": int(chunk.get("ncpus", 1)), "mpiprocs": int(chunk.get("mpiprocs", 1))}


# ------------------------------------------------------------------------------------------------- the job, running
def run_job(id: str) -> None:
    """Wait for nodes, run the job on them, and record how it ended."""
    signalled: list[float] = []
    signal.signal(signal.SIGTERM, lambda *_: signalled.append(time.monotonic()))  # before qdel can know this process
    while True:
        with lock_state():
            job, taken = load_job(id), set()
            if job["state"] == "F":
                return  # deleted while it waited
            for each in (HOME / "jobs").glob("*.json"):
                other = json.loads(each.read_text())
                taken |= set(other.get("hosts", [])) if other["state"] in ("R", "E") else set()
            free = [f"127.0.1.{k + 1}" for k in range(read_conf()["nodes"]) if f"127.0.1.{k + 1}" not in taken]
            if len(free) >= job["chunks"]["count"]:
                job |= {"state": "R", "stime": time.time(), "hosts": free[: job["chunks"]["count"]], "pid": os.getpid()}
                store_job(job)
                break
        time.sleep(0.2)
    folder = HOME / "spool" / id
    folder.mkdir(parents=True)
    (folder / "script").write_text(job["script"])
    (folder / "nodefile").write_text("".join(f"{host}\n" * job["chunks"]["mpiprocs"] for host in job["hosts"]))
    keep = ("PATH", "HOME", "LANG", "SHELL", "USER", "LOGNAME", "PBS_HOME", "TMPDIR")
    env = {name: job["env"][name] for name in keep if name in job["env"]} | {
        "PBS_JOBID": id,
        "PBS_NODEFILE": str(folder / "nodefile"),
        "PBS_O_WORKDIR": job["cwd"],
        "PBS_JOBNAME": job["name"],
        "PBS_QUEUE": job["queue"],
        "PBS_ENVIRONMENT": "PBS_BATCH",
        "NCPUS": str(job["chunks"]["ncpus"]),
    }
    out, err = folder / "out", folder / "err"
    with open(out, "w") as stdout, open(err, "w") as stderr:
        joined = job["join"] in ("oe", "eo")
        process = subprocess.Popen(
            ["bash", str(folder / "script")],
            cwd=env.get("HOME", "/"),
            env=env,
            stdout=stdout,
            stderr=subprocess.STDOUT if joined else stderr,
            start_new_session=True,
        )
    with lock_state():
        store_job(load_job(id) | {"process": process.pid})
    end, late = time.monotonic() + to_seconds(job["walltime"]), False
    while process.poll() is None:
        if not signalled and time.monotonic() > end:
            late = True
            signalled.append(time.monotonic())
        if signalled and len(signalled) < 2:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            signalled.append(time.monotonic())
        if signalled and time.monotonic() > signalled[0] + read_conf()["kill_delay"]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.05)
    code = process.returncode
    status = -29 if late else 256 + signal.SIGTERM if signalled else 256 - code if code < 0 else code
    for kept, wanted in ((out, job["out"]), (err, job["err"])):  # copied back when it ends, as PBS does
        if wanted and not (joined and kept == err):
            (Path(job["cwd"]) / wanted).write_bytes(kept.read_bytes())
    with lock_state():
        store_job(load_job(id) | {"state": "F", "status": status, "etime": time.time()})


def qdel(ids: list[str]) -> None:
    for id in ids:
        with lock_state():
            job = load_job(id)
            if job["state"] == "F":
                raise PbsError(f"Job has finished {id}", FINISHED)
            if job["state"] == "Q":
                store_job(job | {"state": "F"})
                continue
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(job["pid"], signal.SIGTERM)


def qsig(words: list[str]) -> None:
    """Send a signal to all processes of each job: qsig -s SIGNAL JOB..."""
    if words[0] != "-s" or not hasattr(signal, words[1]):
        raise PbsError("usage: qsig [-s signal] job_identifier...", 2)
    for id in words[2:]:
        job = load_job(id)
        if job["state"] != "R":
            raise PbsError(f"Request invalid for state of job {id}", 178)
        os.killpg(job["process"], getattr(signal, words[1]))


# ---------------------------------------------------------------------------------------------------- descriptions
def describe_job(job: dict) -> dict:
    when = {
        name: time.strftime("%a %b %d %H:%M:%S %Y", time.localtime(job[key]))
        for name, key in (("ctime", "ctime"), ("stime", "stime"))
        if key in job
    }
    shown = {
        "Job_Name": job["name"],
        "Job_Owner": f"{getpass.getuser()}@{SERVER}",
        "job_state": job["state"],
        "queue": job["queue"],
        "server": SERVER,
        **when,
    }
    if "hosts" in job:
        shown["exec_host"] = "+".join(f"{host}/0*{job['chunks']['ncpus']}" for host in job["hosts"])
    if "status" in job:
        shown["Exit_status"] = job["status"]
        shown["comment"] = f"Job run at {when.get('stime')} on ({shown['exec_host']}) and " + (
            "exceeded limit" if job["status"] == -29 else "finished" if job["status"] == 0 else "failed"
        )
    shown["Resource_List"] = job["resources"] | {"nodect": job["chunks"]["count"]}
    shown["Variable_List"] = {name: job["env"][name] for name in ("HOME", "PATH") if name in job["env"]}
    return shown


def describe_queues() -> dict:
    """Return the queues as `qstat -Q -f -F json` prints them."""
    found = {}
    for name, limits in read_conf()["queues"].items():
        low, high = limits["nodes"]
        found[name] = {
            "queue_type": "Execution",
            "total_jobs": 0,
            "enabled": "True",
            "started": "True",
            "resources_max": {"nodect": high, "walltime": limits["walltime"]},
            "resources_min": {"nodect": low},
        }
    return {"timestamp": int(time.time()), "pbs_version": "23.06.06", "pbs_server": SERVER, "Queue": found}


def qstat(words: list[str]) -> None:
    if "--version" in words or "-Q" in words:
        print("pbs_version = 23.06.06" if "--version" in words else json.dumps(describe_queues(), indent=4))
        return
    history, as_json = "-x" in words, "json" in words
    ids = [word for word in words if re.match(r"\d", word)]
    listed = sorted((HOME / "jobs").glob("*.json"), key=lambda each: int(each.stem))
    found, errors = {}, []
    for id in ids or [each.stem for each in listed]:
        try:
            job = load_job(id)
            if job["state"] == "F" and not history:
                raise PbsError(
                    f"{job['id']} Job has finished, use -x or -H to obtain historical job information", FINISHED
                )
            found[job["id"]] = describe_job(job)
        except PbsError as error:
            errors += [error] if ids else []
    if "first-only" in read_conf()["bugs"]:
        found = dict(list(found.items())[:1])
    if as_json:
        text = json.dumps(
            {"timestamp": int(time.time()), "pbs_version": "23.06.06", "pbs_server": SERVER}
            | ({"Jobs": found} if found else {}),
            indent=4,
        )
        print(text.replace('"PATH":', '"PROMPT":"\\e[0m", "PATH":') if "bad-json" in read_conf()["bugs"] else text)
    else:
        for id, shown in found.items():
            print(f"Job Id: {id}")
            for name, value in shown.items():
                flat = str(value if not isinstance(value, dict) else ",".join(f"{k}={v}" for k, v in value.items()))
                more = (f"\n\t{flat[k : k + 60]}" for k in range(60, len(flat), 60))
                print(f"    {name} = {flat[:60]}" + "".join(more))
            print()
    for error in errors:
        print(f"qstat: {error}", file=sys.stderr)
    sys.exit(errors[-1].code if errors else 0)


def qselect(words: list[str]) -> None:
    for each in sorted((HOME / "jobs").glob("*.json"), key=lambda each: int(each.stem)):
        job = json.loads(each.read_text())
        if job["state"] != "F" or "-x" in words:
            print(job["id"])


# ---------------------------------------------------------------------------------------------------------- mpiexec
def mpiexec(words: list[str]) -> None:
    """Run mpiexec -n RANKS -ppn PER_NODE [--hosts A,B] COMMAND; like Hydra, end all ranks when one fails."""
    ranks, per_node, hosts = 1, 1, list(dict.fromkeys(Path(os.environ["PBS_NODEFILE"]).read_text().split()))
    while words[0].startswith("-"):
        name, value, *words = words
        if name == "-n":
            ranks = int(value)
        elif name in ("-ppn", "--ppn"):
            per_node = int(value)
        elif name in ("-hosts", "--hosts"):
            hosts = value.split(",")
        else:
            raise PbsError(f"unrecognized argument {name.lstrip('-')}", 1)
    if ranks > per_node * len(hosts):
        raise PbsError("not enough hosts", 1)
    started = []
    for rank in range(ranks):
        own = {"PMI_RANK": str(rank), "PMI_SIZE": str(ranks), "MPI_LOCALRANKID": str(rank % per_node)}
        started.append(subprocess.Popen(words, env=os.environ | own))

    def forward_signal(signum: int, frame: object) -> None:
        for each in started:
            each.send_signal(signum)

    for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, forward_signal)
    code = 0
    while any(each.poll() is None for each in started):
        bad = [each.returncode for each in started if each.returncode not in (None, 0)]
        if bad and not code:
            code = bad[0]
            for each in started:
                each.kill()
        time.sleep(0.02)
    codes = [each.returncode for each in started if each.returncode]
    code = code or (codes[0] if codes else 0)
    sys.exit(code if code >= 0 else 128 - code)


VERBS = {
    "qsub": qsub,
    "qstat": qstat,
    "qselect": qselect,
    "qdel": qdel,
    "qsig": qsig,
    "mpiexec": mpiexec,
    "mom": lambda words: run_job(words[0]),
}

if __name__ == "__main__":
    (HOME / "jobs").mkdir(parents=True, exist_ok=True)
    verb, *words = sys.argv[1:]
    try:
        VERBS[verb](words)
    except PbsError as error:
        print(f"{verb}: {error}", file=sys.stderr)
        sys.exit(error.code)
