"""The limit of CPU time that a session puts on each of its processes (`ulimit -t`)."""

from __future__ import annotations

import resource

SECONDS_TO_STOP = 5  # of CPU time, of which a stop takes a part of one


def leave_time_to_stop() -> None:
    """Let SIGXCPU come before the limit at which the kernel kills: most sessions set both to the same time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard == resource.RLIM_INFINITY:
        return
    earlier = max(1, hard - min(SECONDS_TO_STOP, max(1, hard // 4)))
    if soft == resource.RLIM_INFINITY or soft > earlier:
        resource.setrlimit(resource.RLIMIT_CPU, (earlier, hard))


def describe_limit() -> str:
    """Return what ended a driver that got SIGXCPU."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = "" if hard == resource.RLIM_INFINITY else f" of {hard} s (ulimit -H -t)"
    return f"this session's limit of CPU time{limit} is reached"
