"""All ranks of a stage on this machine, where there is no launcher: python -m gnnscale.job.local_launcher RANKS STAGE DIRECTORY.

Each rank is a process, `python -m gnnscale.stages.STAGE DIRECTORY`, that is told its number as torch's own launcher would. What is
signalled to this process goes to all of them. It ends as the first rank that did not end well; the others, which may wait
for that one for ever, are ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

from gnnscale.job.rank_wrapper import STOPPED, in_child

GRACE = 5.0  # s for the others, once one has failed


def main(count: int, stage: str, directory: str) -> int:
    wanted = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)  # until all are there
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    meet |= {"LOCAL_WORLD_SIZE": str(count)}
    command = [sys.executable, "-m", f"gnnscale.stages.{stage}", directory]
    ranks = [
        subprocess.Popen(command, env=os.environ | meet | {"RANK": str(k), "LOCAL_RANK": str(k)}, preexec_fn=in_child)
        for k in range(count)
    ]
    for signum in wanted:
        signal.signal(signum, lambda number, _: tell(ranks, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
    first = 0
    for code in ends(ranks):
        if code and not first:
            first = code
            if code != STOPPED:  # which all do together
                tell(ranks, signal.SIGTERM)
                timer = threading.Timer(GRACE, tell, (ranks, signal.SIGKILL))
                timer.daemon = True
                timer.start()
    return first


def ends(ranks: list[subprocess.Popen]) -> Iterator[int]:
    """The exit code of each, as they end."""
    left = {rank.pid: rank for rank in ranks}
    while left:
        pid, status = os.wait()
        if pid in left:
            rank = left.pop(pid)
            rank.returncode = os.waitstatus_to_exitcode(status)  # as Popen would have it, which then signals it no more
            yield rank.returncode


def tell(ranks: list[subprocess.Popen], signum: int) -> None:
    for rank in ranks:
        if rank.returncode is None:  # not asked by `poll`, which would take its end away from `ends`
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.pid, signum)


def free_port() -> int:
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        return here.getsockname()[1]


if __name__ == "__main__":
    code = main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
    if code < 0:  # a signal: whoever started this is to see the same
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
