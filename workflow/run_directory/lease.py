"""The lease that lets one driver at a time work in a run directory."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from pathlib import Path
from typing import TypedDict

from gnnscale.contract import files
from gnnscale.contract.command_name import command_name
from gnnscale.contract.errors import UserError

STALE_SECONDS = 60.0  # a driver on another host touches its lease every few seconds; after this it may be dead
RENEW_SECONDS = 5.0
STOP_NAME = "driver.stop"  # in the run directory: the lease of the driver that is to stop


class DriverAtWork(UserError):
    """Refusal of a second driver, which whatever starts drivers tells from all mistakes by its exit code."""


class LeaseHolder(TypedDict):
    """Content of driver.lease: the process that holds the lease, or held it last."""

    host: str
    pid: int
    since: float  # time.time()


class Lease:
    """Lease of a run directory, held from `take` to `release`, or to the death of the process."""

    def __init__(self, root: Path):
        self.path = root / "driver.lease"
        self.renewed = 0.0
        self.this_driver: LeaseHolder = {"host": platform.node(), "pid": os.getpid(), "since": time.time()}

    def take(self) -> None:
        self.file = open(self.path, "a+")
        try:
            self.claim()
        except BaseException:
            self.file.close()
            raise
        self.file.truncate(0)
        self.file.write(json.dumps(self.this_driver))
        self.file.flush()
        os.fsync(self.file.fileno())  # for other hosts

    def claim(self) -> None:
        """Raise if another driver holds the lease.

        A held lock belongs to its holder, however long it has been silent: the process may be suspended. A free lock says
        nothing about a driver on another host where locks do not reach over the file system; the file's time does.
        """
        free = files.try_lock(self.file)
        holder, silent = read_holder(self.path), seconds_silent(self.path)
        if free and not (is_elsewhere(holder) and silent <= STALE_SECONDS):
            return
        who = ""
        if holder is not None:
            since = time.strftime("%H:%M:%S", time.localtime(holder["since"]))
            who = f", on host {holder['host']}, pid {holder['pid']}, since {since}"
        is_stale = is_elsewhere(holder) and silent > STALE_SECONDS
        raise DriverAtWork(
            f"{self.path.parent}: another driver is running here{who}",
            f"`status --watch` follows it; to end it: {command_name()} stop --root {self.path.parent}",
            *([f"it has been silent for {silent:.0f} s: if that host is gone, remove {self.path}"] if is_stale else []),
        )

    def renew(self) -> None:
        """Touch the lease, at most every few seconds; raise if another driver took it since this one was silent for long."""
        if time.monotonic() - self.renewed < RENEW_SECONDS:
            return
        self.renewed = time.monotonic()
        holder = read_holder(self.path)
        if holder is not None and holder != self.this_driver:
            raise UserError(
                f"{self.path.parent}: another driver has taken over, on host {holder['host']}, pid {holder['pid']}: this one "
                f"was silent for more than {STALE_SECONDS:.0f} s"
            )
        with contextlib.suppress(OSError):  # a file server that is away for a moment
            os.utime(self.path)

    def is_told_to_stop(self) -> bool:
        """Tell whether `stop` has asked this driver, and no other, to stop."""
        return read_holder(self.path.with_name(STOP_NAME)) == self.this_driver

    def release(self) -> None:
        with contextlib.suppress(OSError):
            if read_holder(self.path) == self.this_driver:
                self.file.truncate(0)  # and not unlinked: another driver may have it open and be waiting
            self.file.close()


def read_holder(path: Path) -> LeaseHolder | None:
    """Read who holds or held the lease."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def is_elsewhere(holder: LeaseHolder | None) -> bool:
    return holder is not None and holder["host"] != platform.node()


def seconds_silent(path: Path) -> float:
    """Return the seconds since the holder last touched the lease."""
    return time.time() - path.stat().st_mtime


def ask_to_stop(root: Path, driver: LeaseHolder) -> None:
    """Ask a driver on any host to stop; the request names it, so that no later one obeys."""
    files.write(root / STOP_NAME, json.dumps(driver))


def live_driver(root: Path) -> LeaseHolder | None:
    """Return the driver that runs in this run directory, if there is one, by the same rule as `take`."""
    path = root / "driver.lease"
    holder = read_holder(path)
    if holder is None:
        return None
    is_live = files.is_locked(path) or (is_elsewhere(holder) and seconds_silent(path) <= STALE_SECONDS)
    return holder if is_live else None
