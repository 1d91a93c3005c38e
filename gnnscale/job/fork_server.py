"""The loop of a warm parent: it forks a child for each request on standard input, and ends with its standard input.

The other side, and why a child belongs to the process that asked for it, is in gnnscale/machine/warm_parent.py.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from gnnscale.machine.process_ties import die_with_parent
from gnnscale.machine.warm_parent import MAX_REQUEST_BYTES, Request

# A program takes its arguments, and the CPU seconds that its warm parent has spent since the last child.
Program = Callable[[Sequence[str], float], None]


def serve(programs: Mapping[str, Program]) -> int:
    """Fork a child for each request until nobody can send one; return 1 if a child would not be as a fresh process is."""
    channel = socket.socket(fileno=os.dup(0))
    gc.collect()
    gc.freeze()  # or every child would copy the memory of what is loaded, at its first collection
    fork_in_vain()
    if count_threads() > 1:
        return 1
    channel.send(b"ready")
    counted = 0.0
    while True:
        message, handles, _, _ = socket.recv_fds(channel, MAX_REQUEST_BYTES, 3)
        if not message:
            return 0
        used = measure_cpu_seconds()
        try:
            fork_child(channel, Request(*json.loads(message)), handles, programs, used - counted)
            counted = used
        except OSError:
            pass  # no memory for a process: the other side sees that no child has its end of the answer
        for handle in handles:
            os.close(handle)


def fork_in_vain() -> None:
    """Fork once: libraries of linear algebra end their threads before a fork, and start them when they next need them."""
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def count_threads() -> int:
    """Count the threads of this process, of all libraries; a fork takes over only the one that calls it."""
    return len(os.listdir("/proc/self/task"))


def measure_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def fork_child(
    channel: socket.socket, request: Request, handles: list[int], programs: Mapping[str, Program], cpu_seconds: float
) -> None:
    """Fork a child by way of a process that ends at once, so that the kernel gives it to the process that asked."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    middle = os.getpid()
    try:
        if os.fork() == 0:
            channel.close()
            wait_for_adoption(middle, request.parent)
            become_child(request, *handles)
            run_to_end(lambda: programs[request.program](request.arguments, cpu_seconds))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)  # of the process in the middle, or of a child that was not to begin


def wait_for_adoption(middle: int, parent: int) -> None:
    """Wait until this process has its parent, with which it will end; end it where that has ended or asks no more."""
    while os.getppid() == middle:
        time.sleep(0.0002)
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)


def become_child(request: Request, out: int, err: int, answer: int) -> None:
    """Make this process what a fresh one would be, and let it begin when the process that asked knows it."""
    if request.own_session:
        os.setsid()
    os.write(answer, str(os.getpid()).encode())
    if os.read(answer, 1) != b"1":
        os._exit(1)
    null = os.open(os.devnull, os.O_RDONLY)
    for handle, number in ((null, 0), (out, 1), (err, 2)):
        os.dup2(handle, number)
    for handle in (null, out, err, answer):
        os.close(handle)
    os.environ.clear()
    os.environ.update(request.environ)
    os.chdir(request.folder)
    sys.path[0] = os.getcwd()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def run_to_end(program: Callable[[], object]) -> NoReturn:
    """Run a program as the main program of this process, and end as the interpreter does."""
    try:
        program()
        code: object = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        traceback.print_exc()
        code = 1
        if isinstance(error, KeyboardInterrupt):  # so that the caller sees the signal
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
