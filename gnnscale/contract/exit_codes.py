"""The exit codes of stages, ranks and batch jobs, and the words by which libraries report a lack of memory."""

from __future__ import annotations

DONE = 0
FAILED = 1
USAGE = 2  # of the command line, as argparse has it
DOUBTFUL = 3  # an audit by hand found something wrong or doubtful
UNCHECKED = 4  # an audit by hand found nothing, but could not make all checks
REFUSED = 64  # the user must change the configuration or the data
BUSY = 69  # another driver works in the run directory
DISK = 74  # no space, or no permission to write
STOPPED = 75  # on request; the same command continues
UNFIT = 76  # a node did not pass its check, so nothing was started
INTERRUPTED = 130  # Ctrl-C, as a shell reports it
MEMORY = 137  # out of memory; also the code of a process that the kernel killed for want of it (SIGKILL)
TERMINATED = 143  # ended by SIGTERM, as a shell reports it

CODE_OF_KIND = {
    "configuration": REFUSED,
    "data": REFUSED,
    "disk-full": DISK,
    "permission": DISK,
    "out-of-memory": MEMORY,
}

OUT_OF_MEMORY_WORDS = (
    "DefaultCPUAllocator: can't allocate",
    "CUDA out of memory",
    "HIP out of memory",
    "XPU out of memory",
)


def to_exit_code(code: int) -> int:
    """Return the exit code of a process as a shell reports it: 128 + the signal where a signal ended it."""
    return code if code >= 0 else 128 - code
