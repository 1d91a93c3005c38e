"""What a directory is good for, from the machine that asks: writing, renaming, locking, room, and its server's clock; and
how much memory this process may have there.

Asked where the driver runs and on every compute node, so: standard library only.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from pathlib import Path
from typing import NamedTuple


class Room(NamedTuple):
    """What is left for this user; quotas are not in it."""

    bytes: int
    files: int | None  # None: the file system does not count them


def fault(directory: Path) -> str:
    """Why no run can live here, or "": all that stages and driver do with files is done once."""
    mine = directory / f".trial.{platform.node()}.{os.getpid()}"
    renamed, linked = mine.with_name(f"{mine.name}.renamed"), mine.with_name(f"{mine.name}.linked")
    doing = "write a file"
    try:
        with open(mine, "w") as file:
            file.write("trial")
            file.flush()
            os.fsync(file.fileno())
            doing = "lock a file"  # Lustre may be mounted without; then no stage would start
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        doing = "rename a file"
        os.replace(mine, renamed)
        doing = "link a file"
        os.link(renamed, linked)
    except OSError as error:
        return f"cannot {doing}: {(error.strerror or str(error)).lower()}"
    finally:
        for path in (mine, renamed, linked):
            path.unlink(missing_ok=True)
    return ""


def clock_lead(directory: Path) -> float:
    """Seconds by which the clock of this machine is ahead of that of the file server, at least: writing may take its time."""
    mine = directory / f".clock.{platform.node()}.{os.getpid()}"
    try:
        with open(mine, "w") as file:
            before = time.time()
            file.write("tick")
            file.flush()
            os.fsync(file.fileno())
            after = time.time()
        stamp = mine.stat().st_mtime
    finally:
        mine.unlink(missing_ok=True)
    return before - stamp if stamp < before else min(0.0, after - stamp)


def memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes: of the machine, or fewer if this process is held to fewer, as a job of a shared node is."""
    line = next(line for line in (proc / "meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    least = int(line.split()[1]) * 1024
    held = proc / "self" / "cgroup"
    for line in held.read_text().splitlines() if held.exists() else []:
        number, kinds, path = line.split(":", 2)
        if number == "0":
            top, name = groups, "memory.max"
        elif "memory" in kinds.split(","):
            top, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = top / path.lstrip("/")
        for group in (inner, *inner.parents):
            said = (group / name).read_text().strip() if (group / name).exists() else "max"
            least = min(least, int(said)) if said.isdigit() else least
            if group == top:
                break
    return least


def room(directory: Path) -> Room:
    found = os.statvfs(directory)
    return Room(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)
