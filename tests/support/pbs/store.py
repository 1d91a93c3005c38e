"""The state of the stand-in for PBS: files below one directory, which every command changes under one lock."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SERVER = "standin"
VERSION = "23.06.06"
CONF: dict[str, Any] = {
    "nodes": 3,
    "ncpus": 8,
    "named": False,  # nodes have names of their own, n1, n2, ...; otherwise addresses of the loop-back interface
    "history": False,  # ended jobs are remembered; not by default
    "kill_delay": 10,
    "latency": 0.0,  # seconds that each command takes
    "down": False,  # the server does not run; jobs do
    "hangs": False,  # the server takes connections, and never answers
    "lost_answers": 0,  # to the next qsub commands, whose jobs are taken
    "silent": [],  # verbs that print nothing and exit with 0, as behind a site's broken wrapper
    "acl_roots": True,  # jobs of root run; not by default, but tests run as root
    "account": None,  # the only one that a hook takes
    "filesystems": [],  # that a hook wants to be named
    "queues": {"workq": {"nodes": [1, 3], "walltime": "02:00:00"}},
    "kill": {},  # number of a job -> the resource for whose excess it is killed
    "ssh": False,  # between nodes
    "bugs": [],  # "bad-json", "no-express": qstat has no -E, as before version 14
}
UNKNOWN_JOB, UNAUTHORIZED, UNKNOWN_SIGNAL, BAD_VALUE, WRONG_STATE = 15001, 15007, 15013, 15014, 15016
UNKNOWN_QUEUE, QUEUE_DISABLED, WRONG_USER, PROTOCOL, UNKNOWN_RESOURCE = 15018, 15021, 15023, 15031, 15035
LIMITS, BAD_SELECT, REJECTED_BY_HOOK, FINISHED, NO_HISTORY = 15036, 15108, 15136, 15139, 15140
TOO_MANY_JOBS = 15142


class PbsError(Exception):
    """An error as PBS prints it, with the number of pbs_error.h, whose lowest byte is the exit code."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number, self.code = number, number & 255


Job = dict[str, Any]


class Store:
    """Store of the site's settings and of its jobs."""

    def __init__(self, home: Path):
        self.home = home
        (home / "jobs").mkdir(exist_ok=True)
        (home / "spool").mkdir(exist_ok=True)

    @property
    def conf(self) -> dict[str, Any]:
        return CONF | json.loads((self.home / "conf.json").read_text())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with open(self.home / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def path(self, id: str) -> Path:
        return self.home / "jobs" / f"{id.split('.')[0]}.json"

    def jobs(self) -> list[Job]:
        """Return all jobs of which the server knows, by number."""
        paths = sorted((self.home / "jobs").glob("*.json"), key=lambda each: int(each.stem))
        return [json.loads(each.read_text()) for each in paths]

    def load(self, id: str) -> Job:
        try:
            job: Job = json.loads(self.path(id).read_text())
        except FileNotFoundError:
            raise PbsError(f"Unknown Job Id {full_id(id)}", UNKNOWN_JOB) from None
        return job

    def save(self, job: Job) -> None:
        write_json(self.path(job["id"]), job)

    def change(self, id: str, **fields: Any) -> Job:
        """Change fields of a job; to be called without the lock."""
        with self.locked():
            job = self.load(id) | fields
            self.save(job)
        return job

    def finish(self, job: Job, status: int | None) -> None:
        """End a job, of which the server keeps nothing unless it has a history; to be called with the lock."""
        job |= {"state": "F", "etime": time.time()} | ({} if status is None else {"status": status})
        with open(self.home / "ended.log", "a") as ended:  # for tests alone
            ended.write(json.dumps({"id": job["id"], "name": job["name"], "status": status}) + "\n")
        if self.conf["history"]:
            self.save(job)
        else:
            self.path(job["id"]).unlink()

    def next_number(self) -> int:
        """Return a number for a new job; to be called with the lock.

        Each server begins with its own, as ranks meet on a port made of the job's number.
        """
        path = self.home / "last_number"
        last = int(path.read_text()) if path.exists() else zlib.crc32(str(self.home).encode()) % 190 * 100
        path.write_text(str(last + 1))
        return last + 1

    def log_command(self, verb: str, words: list[str]) -> None:
        with open(self.home / "commands.log", "a") as log:
            log.write(json.dumps([time.time(), verb, *words]) + "\n")

    def hosts(self) -> list[str]:
        """Return the nodes, of which the first free ones are given to a job."""
        conf = self.conf
        return [f"n{k}" if conf["named"] else f"127.0.1.{k}" for k in range(1, conf["nodes"] + 1)]


def write_json(path: Path, value: Any) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(value))
    beside.replace(path)


def full_id(id: str) -> str:
    return f"{id.split('.')[0]}.{SERVER}"


def to_seconds(walltime: str) -> int:
    parts = [int(part) for part in walltime.split(":")]
    return sum(part * 60**k for k, part in enumerate(reversed(parts)))


def user_name() -> str:
    return getpass.getuser()


def is_job_id(word: str) -> bool:
    return re.fullmatch(r"\d+(\.[\w.-]+)?", word) is not None
