"""The journal events.jsonl of a run directory: one event a line, with a check sum; one driver appends, any process reads.

From it a driver that was killed learns which jobs it was about to submit, and which of them the scheduler took.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from gnnscale.contract import files

WITHDRAWN_MARKER = "withdrawn"  # in an attempt's directory: its user cancelled the job


class Journal:
    """Writer of the journal. After `note` a durable line is on the disk, or `note` raises; others may be lost without harm."""

    def __init__(self, path: Path):
        self.path, self.lock, self.torn = path, threading.Lock(), has_torn_end(path)

    def note(self, event: str, stage: str = "", *, durable: bool = False, **facts: Any) -> None:
        body = {"time": round(time.time(), 3), "event": event, **({"stage": stage} if stage else {}), **facts}
        try:
            with self.lock:
                self.append(encode_line(body), durable)
        except OSError:
            if durable:
                raise
            # else a full disk shows in the stages, which report it to the user

    def append(self, text: bytes, durable: bool) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            text = b"\n" + text if self.torn else text
            self.torn = True  # until all of it is written
            if os.write(handle, text) != len(text):
                raise OSError(errno.ENOSPC, "no space left on device", str(self.path))
            if durable:
                os.fsync(handle)
            self.torn = False
        finally:
            os.close(handle)


def encode_line(body: dict[str, Any]) -> bytes:
    """Encode as JSON whose last field is the check sum of the text before it."""
    text = json.dumps(body)[:-1]
    return f'{text}, "crc": "{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read every whole line. A line that a kill or a full disk tore is skipped: nothing was done because of it."""
    try:
        text = path.read_bytes()
    except OSError:
        return []
    return [body for part in text.split(b"\n") if (body := decode_line(part)) is not None]


def decode_line(text: bytes) -> dict[str, Any] | None:
    """Decode a line; return None if it is torn or its check sum is wrong."""
    head, comma, tail = text.rpartition(b', "crc": "')
    if not comma or tail != b'%08x"}' % zlib.crc32(head):
        return None
    return json.loads(head + b"}")


def has_torn_end(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # not there, or empty
        return False


# ------------------------------------------------------------------------------------------------- jobs of the journal
class RecordedJob(NamedTuple):
    """Job of this run directory, as the journal records it."""

    name: str
    root: str  # the run directory in which it works; another one in a copy of the directory
    site: str
    stages: dict[str, tuple[str, int]]  # id -> directory below the root, number of the attempt
    id: str | None = None  # None: about to be submitted; only the scheduler knows whether it was
    ended: frozenset[str] = frozenset()
    last_status: tuple[str, str, str] = ("", "", "")  # state, reason, nodes

    def is_stale(self, folders: set[str]) -> bool:
        """Tell whether no stage of the study needs it any more; `folders` are those of the study as it is now."""
        return not any(folder in folders for id, (folder, _) in self.stages.items() if id not in self.ended)


def collect_jobs(events: list[dict[str, Any]]) -> dict[str, RecordedJob]:
    """Collect the jobs that the events record, by name."""
    jobs: dict[str, RecordedJob] = {}
    for event in events:
        name = event.get("name", "")
        if event["event"] == "intend":
            jobs[name] = RecordedJob(
                name, event["root"], event["site"], {id: tuple(place) for id, place in event["stages"].items()}
            )
        elif name in jobs and event["event"] == "submit":
            jobs[name] = jobs[name]._replace(id=event["job"])
        elif name in jobs and event["event"] == "job":
            jobs[name] = jobs[name]._replace(last_status=(event["state"], event["reason"], event["nodes"]))
        elif name in jobs and event["event"] == "ended":
            jobs[name] = jobs[name]._replace(ended=jobs[name].ended | {event["stage"]})
    return jobs


def unfinished_jobs(root: Path) -> list[RecordedJob]:
    """Return the jobs that may still work in this directory."""
    jobs = collect_jobs(read_events(root / "events.jsonl")).values()
    return [job for job in jobs if job.root == str(root) and job.stages.keys() - job.ended]


def job_name(root: Path, keys: list[str], attempt: int) -> str:
    """Name a job: the same for every driver of this directory, different in a copy of it, short enough for any scheduler."""
    return f"gs{files.digest([str(root), sorted(keys)])[:8]}-{attempt}"
