"""One rank of a stage in a batch job: python -m gnnscale.job.rank_wrapper ATTEMPT STAGE, through srun, mpiexec or alone.

Runs `python -m gnnscale.stages.STAGE .` and passes a request to stop on to it. The first rank that ends otherwise than with 0
leaves `CODE RANK HOST` in ATTEMPT/failed: a launcher tells only how it swept up the others. And a rank that was told to
stop and kept its work ends with 0 for the launcher, which would kill those that are still writing.

Asked by SIGUSR2 where it is, it prints the stacks of its stage, `[rank 1 on n2] ` before every line, as several print at once.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from gnnscale.machine.rank_env import ranks

STOPPED = 75
BY_FILE, LISTEN = "GNNSCALE_BY_FILE", 1.0  # s between two looks
ANSWER = 2.0  # s in which a process that is not stopped, or stuck in the kernel, writes its stacks
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def main(attempt: Path, stage: str) -> int:
    told, said = False, tempfile.TemporaryFile()

    def tell(*_: object) -> None:
        nonlocal told
        told = True
        child.send_signal(signal.SIGUSR1)

    wanted = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)  # until there is somebody to tell
    command = [sys.executable, "-m", "gnnscale.job.stack_dump", str(said.fileno()), f"gnnscale.stages.{stage}", "."]
    child = subprocess.Popen(command, preexec_fn=in_stage, pass_fds=[said.fileno()])
    for signum in wanted:
        signal.signal(signum, tell)
    signal.signal(signal.SIGUSR2, lambda *_: show(child, said))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
    code = waited(child, attempt)
    code = code if code >= 0 else 128 - code  # as a shell tells it
    if told and code in (128 + signal.SIGUSR1, 128 + signal.SIGTERM):
        code = STOPPED  # told before it listened
    if code:
        note(attempt / "failed", f"{code} {ranks().rank} {platform.node()}\n")
    return 0 if code == STOPPED else code


def waited(child: subprocess.Popen, attempt: Path) -> int:
    """Its exit code. Where signals are told by files named after them, each that appears is heard, once."""
    heard = set()
    while BY_FILE in os.environ:
        try:
            return child.wait(timeout=LISTEN)
        except subprocess.TimeoutExpired:
            for name in {"SIGUSR1", "SIGUSR2"} - heard:
                if (attempt / name).exists():
                    heard.add(name)
                    signal.raise_signal(signal.Signals[name])
    return child.wait()


def in_child() -> None:
    """Signals as they were; and no stage outlives its rank."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if LIBC is not None:
        LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, kept through exec


def in_stage() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # until it can answer; kept through exec
    in_child()


def show(child: subprocess.Popen, said: IO[bytes]) -> None:
    """What the stage answers, on standard error; or in which state it is, if it does not."""
    before = length = os.fstat(said.fileno()).st_size
    child.send_signal(signal.SIGUSR2)
    deadline = time.monotonic() + ANSWER
    while time.monotonic() < deadline:
        time.sleep(0.2)
        now = os.fstat(said.fileno()).st_size
        if now == length > before:  # and all of it
            break
        length = now
    text = os.pread(said.fileno(), 1 << 20, before).decode(errors="replace")
    label = f"[rank {ranks().rank} on {platform.node()}] "
    lines = text.splitlines() or [f"no answer: {state(child.pid)}"]
    os.write(2, "".join(f"{label}{line}\n" for line in lines).encode())


def state(pid: int) -> str:
    """As the kernel tells it: `T (stopped)`, `D (disk sleep)`"""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return "it has ended"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("State:")), "unknown")


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
