"""events.jsonl: what happened in a run directory, a checked line each; one driver appends, anybody reads.

It is what a driver knows after it was killed: which jobs it meant to submit, and which of them the scheduler took.
"""

from __future__ import annotations

import json
import os
import threading
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from gnnscale.contract import files

WITHDRAWN = "withdrawn"  # in an attempt's directory: its user cancelled the job


class Journal:
    """Appends. A `durable` line is on the disk when `note` returns, or `note` raises; others are lost without harm."""

    def __init__(self, path: Path):
        self.path, self.lock, self.torn = path, threading.Lock(), ends_torn(path)

    def note(self, event: str, stage: str = "", *, durable: bool = False, **facts: Any) -> None:
        body = {"time": round(time.time(), 3), "event": event, **({"stage": stage} if stage else {}), **facts}
        try:
            with self.lock:
                self.append(line(body), durable)
        except OSError:
            if durable:
                raise
            # else a full disk shows in the stages, where it can be told to the user

    def append(self, text: bytes, durable: bool) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            text = b"\n" + text if self.torn else text
            self.torn = True  # until all of it is written
            if os.write(handle, text) != len(text):
                raise OSError(28, "no space left on device", str(self.path))
            if durable:
                os.fsync(handle)
            self.torn = False
        finally:
            os.close(handle)


def line(body: dict[str, Any]) -> bytes:
    """JSON whose last field is the check sum of what stands before it."""
    text = json.dumps(body)[:-1]
    return f'{text}, "crc": "{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole line. What a kill or a full disk tore is passed over: it was never acted upon."""
    try:
        text = path.read_bytes()
    except OSError:
        return []
    return [body for part in text.split(b"\n") if (body := checked(part)) is not None]


def checked(text: bytes) -> dict[str, Any] | None:
    head, comma, tail = text.rpartition(b', "crc": "')
    if not comma or tail != b'%08x"}' % zlib.crc32(head):
        return None
    return json.loads(head + b"}")


def ends_torn(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # not there, or empty
        return False


# ---------------------------------------------------------------------------------------------- jobs, as they are noted
class Known(NamedTuple):
    """A job, as the journal has it."""

    name: str
    root: str  # where it is at work; another in a copy of the directory
    site: str
    stages: dict[str, tuple[str, int]]  # id -> its directory below the root, number of the attempt
    id: str | None = None  # None: meant to be submitted; whether it was, only the scheduler knows
    ended: frozenset[str] = frozenset()
    seen: tuple[str, str, str] = ("", "", "")  # what was last said of it: state, reason, nodes

    def stale(self, folders: set[str]) -> bool:
        """Whether nobody waits for it any more; `folders` are those of the study as it is now."""
        return not any(folder in folders for id, (folder, _) in self.stages.items() if id not in self.ended)


def known_jobs(events: list[dict]) -> dict[str, Known]:
    jobs: dict[str, Known] = {}
    for event in events:
        name = event.get("name", "")
        if event["event"] == "intend":
            jobs[name] = Known(
                name, event["root"], event["site"], {id: tuple(place) for id, place in event["stages"].items()}
            )
        elif name in jobs and event["event"] == "submit":
            jobs[name] = jobs[name]._replace(id=event["job"])
        elif name in jobs and event["event"] == "job":
            jobs[name] = jobs[name]._replace(seen=(event["state"], event["reason"], event["nodes"]))
        elif name in jobs and event["event"] == "ended":
            jobs[name] = jobs[name]._replace(ended=jobs[name].ended | {event["stage"]})
    return jobs


def unfinished(root: Path) -> list[Known]:
    """Jobs that may be at work in this directory."""
    jobs = known_jobs(read(root / "events.jsonl")).values()
    return [job for job in jobs if job.root == str(root) and job.stages.keys() - job.ended]


def name_of(root: Path, keys: list[str], attempt: int) -> str:
    """The same for every driver of this directory, another in a copy of it; short enough for every scheduler."""
    return f"gs{files.digest([str(root), sorted(keys)])[:8]}-{attempt}"
