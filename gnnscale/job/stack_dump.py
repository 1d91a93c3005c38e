"""A module run so that it prints its stacks: python -m gnnscale.job.stack_dump HANDLE MODULE ARGUMENTS...

It runs as `python -m MODULE ARGUMENTS...` does. On SIGUSR2 the stacks of all threads go to the open file HANDLE, also while
the module imports, and also while it waits in a library that never returns to Python.
"""

from __future__ import annotations

import faulthandler
import os
import runpy
import signal
import sys


def print_on_signal(handle: int) -> None:
    """Print the stacks of all threads into an open file, at each SIGUSR2."""
    faulthandler.register(signal.SIGUSR2, file=handle, all_threads=True)
    os.environ["GNNSCALE_STACKS"] = str(handle)


if __name__ == "__main__":
    print_on_signal(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
