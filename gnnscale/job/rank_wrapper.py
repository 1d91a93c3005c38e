"""One rank of a stage in a batch job: python -m gnnscale.job.rank_wrapper ATTEMPT STAGE, through srun, mpiexec or alone.

It runs `python -m gnnscale.stages.STAGE .` and forwards a request to stop. The first rank that fails leaves `CODE RANK HOST` in
ATTEMPT/failed: a launcher reports only how it ended the others. A rank that stopped on request and kept its work ends with 0
for the launcher, which would otherwise kill the ranks that are still writing.

On SIGUSR2 it prints the stacks of its stage, `[rank 1 on n2] ` before every line, as several ranks print at once.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from gnnscale.contract.exit_codes import STOPPED, to_exit_code
from gnnscale.job import fork_server, stack_dump
from gnnscale.machine.process_ties import die_with_parent
from gnnscale.machine.rank_env import read_ranks
from gnnscale.machine.warm_parent import ForkedProcess

SIGNALS_BY_FILE = "GNNSCALE_BY_FILE"  # variable: signals arrive as files of the attempt, named after them
POLL_SECONDS = 1.0  # between two looks for such files
STACK_SECONDS = 2.0  # within which a process that is not stopped, or stuck in the kernel, writes its stacks

Process = subprocess.Popen[bytes] | ForkedProcess


def main(attempt: Path, stage: str, run_stage: Callable[[], object] | None = None) -> int:
    """Run the stage of this rank, in a fresh process or, where `run_stage` runs it without an import, in a forked one."""
    signalled, stacks = False, tempfile.TemporaryFile()

    def forward_signal(*_: object) -> None:
        nonlocal signalled
        signalled = True
        child.send_signal(signal.SIGUSR1)

    signals = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until there is a process to forward them to
    child = start_stage(stage, stacks.fileno()) if run_stage is None else fork_stage(run_stage, stacks.fileno())
    for signum in signals:
        signal.signal(signum, forward_signal)
    signal.signal(signal.SIGUSR2, lambda *_: print_stacks(child, stacks))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    code = to_exit_code(wait_for(child, attempt))
    if signalled and code in (128 + signal.SIGUSR1, 128 + signal.SIGTERM):
        code = STOPPED  # signalled before the stage had installed its handler
    if code:
        record_failure(attempt / "failed", f"{code} {read_ranks().rank} {platform.node()}\n")
    return 0 if code == STOPPED else code


def start_stage(stage: str, stacks: int) -> Process:
    command = [sys.executable, "-m", "gnnscale.job.stack_dump", str(stacks), f"gnnscale.stages.{stage}", "."]
    return subprocess.Popen(command, preexec_fn=prepare_stage, pass_fds=[stacks])


def fork_stage(run_stage: Callable[[], object], stacks: int) -> Process:
    """Run a stage in a fork of this process, which a warm parent has forked for this rank."""
    if pid := os.fork():
        return ForkedProcess(pid)
    try:
        prepare_stage()
        stack_dump.print_on_signal(stacks)
        fork_server.run_to_end(run_stage)
    finally:
        os._exit(1)  # never back into the process that waits for this one


def wait_for(child: Process, attempt: Path) -> int:
    """Return the exit code of the stage; meanwhile deliver, once each, the signals that arrive as files."""
    delivered: set[str] = set()
    while SIGNALS_BY_FILE in os.environ:
        try:
            return child.wait(timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            for name in {"SIGUSR1", "SIGUSR2"} - delivered:
                if (attempt / name).exists():
                    delivered.add(name)
                    signal.raise_signal(signal.Signals[name])
    return child.wait()


def tie_to_parent() -> None:
    """Unblock all signals, and let the kernel kill this process when its parent ends."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    die_with_parent()


def prepare_stage() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # until it can print its stacks; kept through exec
    tie_to_parent()


def print_stacks(child: Process, stacks: IO[bytes]) -> None:
    """Print the stacks that the stage writes into `stacks`, or its process state if it writes none."""
    before = length = os.fstat(stacks.fileno()).st_size
    child.send_signal(signal.SIGUSR2)
    deadline = time.monotonic() + STACK_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.2)
        now = os.fstat(stacks.fileno()).st_size
        if now == length > before:  # it grows no more
            break
        length = now
    text = os.pread(stacks.fileno(), 1 << 20, before).decode(errors="replace")
    label = f"[rank {read_ranks().rank} on {platform.node()}] "
    lines = text.splitlines() or [f"no answer: {read_process_state(child.pid)}"]
    os.write(2, "".join(f"{label}{line}\n" for line in lines).encode())


def read_process_state(pid: int) -> str:
    """Return the kernel's words for a process: `T (stopped)`, `D (disk sleep)`."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return "it has ended"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("State:")), "unknown")


def record_failure(path: Path, text: str) -> None:
    """Write `text` unless another rank has written before: the first failure is the cause of the others."""
    beside = path.with_name(f".failed.{platform.node()}.{os.getpid()}")
    try:
        beside.write_text(text)
        os.link(beside, path)
    except OSError:
        pass  # it is there already; or the disk is full, which the stage itself has reported
    beside.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
