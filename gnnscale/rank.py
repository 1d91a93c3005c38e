"""One rank of a stage in a batch job: python -m gnnscale.rank ATTEMPT STAGE, through srun, mpiexec or alone.

Runs `python -m gnnscale.STAGE .` and passes a request to stop on to it. The first rank that ends otherwise than with 0
leaves `CODE RANK HOST` in ATTEMPT/failed: a launcher tells only how it swept up the others. And a rank that was told to
stop and kept its work ends with 0 for the launcher, which would kill those that are still writing.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

from gnnscale.ranks import ranks

STOPPED = 75
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def main(attempt: Path, stage: str) -> int:
    told = False

    def tell(*_: object) -> None:
        nonlocal told
        told = True
        child.send_signal(signal.SIGUSR1)

    wanted = (signal.SIGUSR1, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)  # until there is somebody to tell
    child = subprocess.Popen([sys.executable, "-m", f"gnnscale.{stage}", "."], preexec_fn=in_child)
    for signum in wanted:
        signal.signal(signum, tell)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
    code = child.wait()
    code = code if code >= 0 else 128 - code  # as a shell tells it
    if told and code in (128 + signal.SIGUSR1, 128 + signal.SIGTERM):
        code = STOPPED  # told before it listened
    if code:
        note(attempt / "failed", f"{code} {ranks().rank} {platform.node()}\n")
    return 0 if code == STOPPED else code


def in_child() -> None:
    """Signals as they were; and no stage outlives its rank."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if LIBC is not None:
        LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, kept through exec


def note(path: Path, words: str) -> None:
    """The first one is right, whoever else tries."""
    beside = path.with_name(f".failed.{platform.node()}.{os.getpid()}")
    try:
        beside.write_text(words)
        os.link(beside, path)
    except OSError:
        pass  # it is there already; or the disk is full, which the stage itself has told
    beside.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
