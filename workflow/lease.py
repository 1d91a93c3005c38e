"""One driver at a time in a run directory."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from pathlib import Path

from workflow.yamlfile import Problem

STALE_SECONDS = 60.0  # a driver on another host touches its lease every few seconds; after this it is dead


class Lease:
    """Held from `take` to `release`, or to the death of the process."""

    def __init__(self, root: Path):
        self.path = root / "driver.lease"

    def take(self) -> None:
        self.file = open(self.path, "a+")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:
            free = False
        holder = read(self.path)
        elsewhere = holder is not None and holder["host"] != platform.node()
        if elsewhere:  # locks may not reach over a shared file system, the file's time does
            free = time.time() - self.path.stat().st_mtime > STALE_SECONDS
        if not free:
            held = holder or {"host": "?", "pid": "?", "since": time.time()}
            since = time.strftime("%H:%M:%S", time.localtime(held["since"]))
            raise Problem(
                f"{self.path.parent}: another driver is at work here, on host {held['host']}, pid {held['pid']}, since {since}",
                "wait for it, or stop it with Ctrl-C there; `status` shows how far it is",
            )
        self.file.truncate(0)
        self.file.write(json.dumps({"host": platform.node(), "pid": os.getpid(), "since": time.time()}))
        self.file.flush()

    def renew(self) -> None:
        os.utime(self.path)

    def release(self) -> None:
        self.file.truncate(0)  # and not unlinked: another driver may have it open and be waiting
        self.file.close()


def read(path: Path) -> dict | None:
    """Who holds or held the lease."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def alive(root: Path) -> dict | None:
    """The driver at work in this run directory, if there is one."""
    holder = read(root / "driver.lease")
    if holder is None:
        return None
    if holder["host"] == platform.node():
        try:
            os.kill(holder["pid"], 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return holder
    return holder if time.time() - (root / "driver.lease").stat().st_mtime <= STALE_SECONDS else None
