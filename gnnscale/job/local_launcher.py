"""A launcher for one machine: python -m gnnscale.job.local_launcher RANKS STAGE DIRECTORY.

Each rank is a process, `python -m gnnscale.stages.STAGE DIRECTORY`, with the variables that torch's own launcher sets. A
signal to the launcher goes to all ranks. The launcher ends with the code of the first rank that failed; the other ranks,
which might wait for that one for ever, are ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from gnnscale.contract.exit_codes import STOPPED
from gnnscale.job.rank_wrapper import tie_to_parent

SECONDS_TO_SIGKILL = 5.0  # from SIGTERM, for the other ranks once one has failed

Process = subprocess.Popen[bytes]


def main(count: int, stage: str, directory: str) -> int:
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until all ranks are started
    ranks = start_ranks(count, [sys.executable, "-m", f"gnnscale.stages.{stage}", directory])
    for signum in signals:
        signal.signal(signum, lambda number, _: send_signal(ranks, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    first = 0
    for code in wait_for_each(ranks):
        if code and not first:
            first = code
            if code != STOPPED:  # all ranks stop together
                end_ranks(ranks)
    return first


def start_ranks(count: int, command: list[str]) -> list[Process]:
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    return [
        subprocess.Popen(
            command, env=os.environ | shared | {"RANK": str(k), "LOCAL_RANK": str(k)}, preexec_fn=tie_to_parent
        )
        for k in range(count)
    ]


def wait_for_each(ranks: Sequence[Process]) -> Iterator[int]:
    """Yield the exit code of each rank, as they end."""
    running = {rank.pid: rank for rank in ranks}
    while running:
        pid, status = os.wait()
        if pid in running:
            rank = running.pop(pid)
            rank.returncode = os.waitstatus_to_exitcode(status)  # so Popen knows, and signals it no more
            yield rank.returncode


def send_signal(ranks: Sequence[Process], signum: int) -> None:
    for rank in ranks:
        if rank.returncode is None:  # `poll` would take the exit code away from wait_for_each
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.pid, signum)


def end_ranks(ranks: Sequence[Process]) -> None:
    """Send SIGTERM at once, and SIGKILL after SECONDS_TO_SIGKILL."""
    send_signal(ranks, signal.SIGTERM)
    timer = threading.Timer(SECONDS_TO_SIGKILL, send_signal, (ranks, signal.SIGKILL))
    timer.daemon = True
    timer.start()


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    code = main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
    if code < 0:  # a signal: end by the same one, so that the caller sees it
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
