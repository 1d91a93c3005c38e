"""The limits of this login session, and whether a driver outlives them; a driver that they end leaves its jobs behind."""

from __future__ import annotations

import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from workflow.config.site import SiteConfig
from workflow.doctor.diagnosis import Finding, bad, ok

# Measured with 30 trainings on Slurm and poll_seconds: 30 (python -m tests.benchmarks driver).
CPU_SECONDS_PER_HOUR = 12.4
RESIDENT_BYTES, ADDRESS_BYTES, THREADS = 69e6, 1.6e9, 35
MARGIN = 3.0  # for larger studies
SAFE_HOURS = 14 * 24.0  # a study that needs its driver for longer is told nothing new by this
OTHER_LIMITS = ("service", "scrontab", "job")  # ways of a driver that leave the limits of the session
LOGINCTL_SECONDS = 10
CGROUPS = Path("/sys/fs/cgroup")


class SessionLimits(NamedTuple):
    """Limits of this session; None where there is none, or none can be read."""

    cpu_seconds: float | None = None  # of each process
    address_bytes: float | None = None
    memory_bytes: float | None = None  # of all processes of the session or the user together
    processes: float | None = None
    ends_at_logout: bool = False


def examine_driver(site: SiteConfig) -> Finding:
    """Check that a driver started in this session lives as long as a study."""
    return judge_limits(read_limits(), site)


# --------------------------------------------------------------------------------------------------------- judgement
def judge_limits(limits: SessionLimits, site: SiteConfig) -> Finding:
    """Judge the limits by what a driver needs. Pure."""
    need = f"a driver needs {CPU_SECONDS_PER_HOUR:.0f} s of CPU time an hour and {RESIDENT_BYTES / 1e6:.0f} MB"
    if faults := [*find_faults(limits)]:
        return bad("driver", f"{'; '.join(faults)}: {need}", advise_way(site))
    if limits.ends_at_logout and site.driver.way not in OTHER_LIMITS:
        text = "this machine ends all processes of a user at logout, those in tmux too"
        fix = "loginctl enable-linger, then: run --detach --set driver.way=service"
        return bad("driver", text, fix) if site.has_scheduler else ok("driver", f"{text}; {fix}")
    return ok("driver", f"no limit of this session ends one; {need}, and `run --detach` lets it outlive the session")


def find_faults(limits: SessionLimits) -> Iterator[str]:
    """Yield each limit that ends a driver, with what it is called in a shell."""
    if limits.cpu_seconds is not None and (hours := limits.cpu_seconds / CPU_SECONDS_PER_HOUR) < SAFE_HOURS:
        yield f"it is killed after {limits.cpu_seconds:.0f} s of CPU time (ulimit -t), in about {hours:.0f} h"
    if limits.address_bytes is not None and limits.address_bytes < MARGIN * ADDRESS_BYTES:
        yield f"only {limits.address_bytes / 1e9:.1f} GB may be mapped (ulimit -v), and a driver maps {ADDRESS_BYTES / 1e9:.1f}"
    if limits.memory_bytes is not None and limits.memory_bytes < MARGIN * RESIDENT_BYTES:
        yield f"the session has only {limits.memory_bytes / 1e6:.0f} MB (memory.max)"
    if limits.processes is not None and limits.processes < MARGIN * THREADS:
        yield f"only {limits.processes:.0f} processes and threads are allowed, and a driver has {THREADS}"


def advise_way(site: SiteConfig) -> str:
    """Return what to type where the session's limits are too low."""
    if site.driver.way in OTHER_LIMITS:
        return f"run --detach: by {site.driver.way}, which has other limits"
    if site.has_scheduler:
        return "run --detach --set driver.way=job --set driver.queue=NAME: a job has other limits"
    return "ask for a session without this limit, or start the driver on another machine"


# ------------------------------------------------------------------------------------------------------- measurement
def read_limits() -> SessionLimits:
    return SessionLimits(
        read_resource(resource.RLIMIT_CPU),
        read_resource(resource.RLIMIT_AS),
        read_cgroup("memory.max"),
        min(filter(None, [read_resource(resource.RLIMIT_NPROC), read_cgroup("pids.max")]), default=None),
        ends_at_logout(),
    )


def read_resource(kind: int) -> float | None:
    hard = resource.getrlimit(kind)[1]
    return None if hard == resource.RLIM_INFINITY else float(hard)


def read_cgroup(name: str) -> float | None:
    """Return the lowest limit of this name among the cgroup of this process and those above it."""
    try:
        found = re.search(r"^0::/(.*)$", Path("/proc/self/cgroup").read_text(), re.M)
    except OSError:
        return None
    own = CGROUPS / (found[1] if found else "")
    folders = [own, *(folder for folder in own.parents if folder.is_relative_to(CGROUPS))]
    values = [read_word(folder / name) for folder in folders]
    return min((float(value) for value in values if value.isdigit()), default=None)


def read_word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def ends_at_logout() -> bool:
    """Tell whether logind kills what a user leaves behind, and this user may leave nothing."""
    return ask_logind("show-session", "KillUserProcesses") == "yes" and ask_logind("show-user", "Linger") != "yes"


def ask_logind(verb: str, name: str) -> str:
    """Return a property of logind, or of this user's; "" where there is no logind."""
    try:
        done = subprocess.run(
            ["loginctl", verb, f"--property={name}", "--value"],
            capture_output=True,
            text=True,
            timeout=LOGINCTL_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
