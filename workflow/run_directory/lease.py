"""One driver at a time in a run directory."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.errors import Problem

STALE_SECONDS = 60.0  # a driver on another host touches its lease every few seconds; after this it may be dead
RENEW_SECONDS = 5.0


class Lease:
    """Held from `take` to `release`, or to the death of the process."""

    def __init__(self, root: Path):
        self.path = root / "driver.lease"
        self.renewed = 0.0
        self.mine = {"host": platform.node(), "pid": os.getpid(), "since": time.time()}

    def take(self) -> None:
        self.file = open(self.path, "a+")
        try:
            self.claim()
        except BaseException:
            self.file.close()
            raise
        self.file.truncate(0)
        self.file.write(json.dumps(self.mine))
        self.file.flush()
        os.fsync(self.file.fileno())  # for other hosts

    def claim(self) -> None:
        """A lock that is held is the holder's, however silent: it may be suspended. One that is free says nothing of a
        driver on another host where locks do not reach over the file system; the file's time does."""
        try:
            free = files.taken(self.file)
        except files.Unlockable as error:
            raise Problem(f"{self.path.parent}: {error}, which keeps two drivers apart", files.UNLOCKABLE) from None
        holder, silent = read(self.path), silence(self.path)
        if free and not (elsewhere(holder) and silent <= STALE_SECONDS):
            return
        held = holder or {"host": "?", "pid": "?", "since": time.time()}
        since = time.strftime("%H:%M:%S", time.localtime(held["since"]))
        lost = elsewhere(holder) and silent > STALE_SECONDS
        raise Problem(
            f"{self.path.parent}: another driver is at work here, on host {held['host']}, pid {held['pid']}, since {since}",
            "wait for it, or stop it with Ctrl-C there; `status` shows how far it is",
            *([f"it has been silent for {silent:.0f} s: if that host is gone, remove {self.path}"] if lost else []),
        )

    def renew(self) -> None:
        """At most every few seconds. A Problem if another driver has taken this one, silent for long, for dead."""
        if time.monotonic() - self.renewed < RENEW_SECONDS:
            return
        self.renewed = time.monotonic()
        holder = read(self.path)
        if holder not in (None, self.mine):
            raise Problem(
                f"{self.path.parent}: another driver has taken over, on host {holder['host']}, pid {holder['pid']}: this one "
                f"was silent for more than {STALE_SECONDS:.0f} s"
            )
        with contextlib.suppress(OSError):  # a file server that is away for a moment
            os.utime(self.path)

    def release(self) -> None:
        with contextlib.suppress(OSError):
            if read(self.path) == self.mine:
                self.file.truncate(0)  # and not unlinked: another driver may have it open and be waiting
            self.file.close()


def read(path: Path) -> dict | None:
    """Who holds or held the lease."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def elsewhere(holder: dict | None) -> bool:
    return holder is not None and holder["host"] != platform.node()


def silence(path: Path) -> float:
    """Seconds since the holder was last heard of."""
    return time.time() - path.stat().st_mtime


def alive(root: Path) -> dict | None:
    """The driver at work in this run directory, if there is one; as `take` judges it."""
    path = root / "driver.lease"
    holder = read(path)
    if holder is None:
        return None
    at_work = files.held(path) or (elsewhere(holder) and silence(path) <= STALE_SECONDS)
    return holder if at_work else None
