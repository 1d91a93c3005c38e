"""The scheduler of the stand-in for PBS: which jobs begin on which nodes, and why others wait.

The first free nodes are given, also to a job whose last one has just failed there.
"""

from __future__ import annotations

import time
from typing import Any

from tests.support.pbs.store import Job, Store, user_name


def schedule(store: Store) -> list[str]:
    """Place the jobs that wait, and return those that begin; to be called with the lock."""
    jobs, conf, begun = store.jobs(), store.conf, []
    for job in (each for each in jobs if each["state"] == "Q"):
        before = job["comment"]
        limit = find_limit(job, [each for each in jobs if each["state"] in "RE"], conf)
        hosts = [] if limit else place(job, free_cores(store, jobs))
        if hosts:
            now = time.time()
            told = (
                f"Job run at {time.strftime('%a %b %d at %H:%M', time.localtime(now))} on {describe_vnodes(job, hosts)}"
            )
            job |= {"state": "R", "stime": now, "hosts": hosts, "comment": told}
            begun.append(job["id"])
        else:
            job["comment"] = limit or explain(job, store)
        if job["comment"] != before:
            store.save(job)
    return begun


def free_cores(store: Store, jobs: list[Job]) -> dict[str, int]:
    free = dict.fromkeys(store.hosts(), store.conf["ncpus"])
    for job in jobs:
        if job["state"] in "RE":
            for host, chunk in zip(job["hosts"], job["chunks"]):
                free[host] = free.get(host, 0) - chunk["ncpus"]
    return free


def place(job: Job, free: dict[str, int]) -> list[str]:
    """Return the host of each chunk, or nothing if they do not all fit now."""
    hosts: list[str] = []
    for chunk in job["chunks"]:
        fit = [h for h, cores in free.items() if cores >= chunk["ncpus"]]
        fit = [h for h in fit if h not in hosts] if job["place"] == "scatter" else fit
        fit = [h for h in fit if chunk.get("host", h) == h and chunk.get("vnode", h) == h]
        if not fit:
            return []
        hosts.append(fit[0])
        free[fit[0]] -= chunk["ncpus"]
    return hosts


def find_limit(job: Job, running: list[Job], conf: dict[str, Any]) -> str:
    """Return the comment of a job that its queue holds back."""
    queue = conf["queues"].get(job["queue"], {})
    if not queue.get("started", True):
        return "Not Running: Queue not started."
    beside = [each for each in running if each["queue"] == job["queue"]]
    if len(beside) >= queue.get("max_run", 10**6):
        return f"Not Running: User has reached queue {job['queue']} running job limit."
    cores = sum(chunk["ncpus"] for each in [*beside, job] for chunk in each["chunks"])
    if cores > queue.get("max_run_ncpus", 10**6):
        return f"Not Running: would exceed user {user_name()}'s limit on resource ncpus in queue {job['queue']}"
    return ""


def explain(job: Job, store: Store) -> str:
    """Return the comment of a job that no free nodes fit; of one that never will, the server says no more than that."""
    most, has = max(chunk["ncpus"] for chunk in job["chunks"]), store.conf["ncpus"]
    if most > has:
        return f"Can Never Run: Insufficient amount of resource: ncpus (R: {most} A: {has} T: {has})"
    if not place(job, dict.fromkeys(store.hosts(), has)):
        return "Can Never Run: Not enough total nodes available"
    return f"Not Running: Insufficient amount of resource: ncpus (R: {most} A: 0 T: {has})"


def describe_vnodes(job: Job, hosts: list[str]) -> str:
    return "+".join(f"({host}:ncpus={chunk['ncpus']})" for host, chunk in zip(hosts, job["chunks"]))
