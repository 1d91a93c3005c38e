"""Ties between processes that the kernel keeps: a process ends with its parent, or takes the children of one below it.

Only Linux has them. Standard library only, as they are set between fork and exec.
"""

from __future__ import annotations

import ctypes
import signal
import sys

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here, not between fork and exec
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends; the tie is kept through exec."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans(wanted: bool) -> bool:
    """Let processes below this one become its children when their parents end, or no more; return whether that works."""
    return LIBC is not None and LIBC.prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) == 0
