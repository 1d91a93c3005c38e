"""Checks of a directory and of this process's memory, from this machine: writing, renaming, locking, space, clock.

They run where the driver runs and on every compute node, so: standard library only.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract.errors import reason_of


class FreeSpace(NamedTuple):
    """Free space of a file system for this user, without regard to quotas."""

    bytes: int
    files: int | None  # None: the file system does not count them


def find_fault(directory: Path) -> str:
    """Return why no run can live in a directory, or "": try once everything that stages and driver do with files."""
    trial = directory / f".trial.{platform.node()}.{os.getpid()}"
    renamed, linked = trial.with_name(f"{trial.name}.renamed"), trial.with_name(f"{trial.name}.linked")
    action = "write a file"
    try:
        with open(trial, "w") as file:
            file.write("trial")
            file.flush()
            os.fsync(file.fileno())
            action = "lock a file"  # a Lustre may be mounted without locks; then no stage would start
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        action = "rename a file"
        os.replace(trial, renamed)
        action = "link a file"
        os.link(renamed, linked)
    except OSError as error:
        return f"cannot {action}: {reason_of(error)}"
    finally:
        for path in (trial, renamed, linked):
            path.unlink(missing_ok=True)
    return ""


def measure_clock_lead(directory: Path) -> float:
    """Return the seconds, at least, by which this clock is ahead of the file server's; a write may take its time."""
    trial = directory / f".clock.{platform.node()}.{os.getpid()}"
    try:
        with open(trial, "w") as file:
            before = time.time()
            file.write("tick")
            file.flush()
            os.fsync(file.fileno())
            after = time.time()
        stamp = trial.stat().st_mtime
    finally:
        trial.unlink(missing_ok=True)
    return before - stamp if stamp < before else min(0.0, after - stamp)


def read_memory_limit(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the machine's bytes of memory, or fewer where a control group limits this process to fewer."""
    line = next(line for line in (proc / "meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    least = int(line.split()[1]) * 1024
    for limit in list_limit_files(proc, groups):
        text = limit.read_text().strip() if limit.exists() else "max"
        least = min(least, int(text)) if text.isdigit() else least
    return least


def list_limit_files(proc: Path, groups: Path) -> Iterator[Path]:
    """Yield the files that may limit this process's memory: those of its control group and of the groups around it."""
    membership = proc / "self" / "cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else []:
        number, kinds, path = line.split(":", 2)
        if number == "0":
            top, name = groups, "memory.max"
        elif "memory" in kinds.split(","):
            top, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = top / path.lstrip("/")
        for group in (inner, *inner.parents):
            yield group / name
            if group == top:
                break


def measure_free_space(directory: Path) -> FreeSpace:
    found = os.statvfs(directory)
    return FreeSpace(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)
