"""A warm parent: a process that has the libraries of stages loaded, and forks a stage for each request.

A fresh process spends a second or more of CPU on imports before a stage begins; a forked one, some hundredths. This is the
side of the driver and of a batch job; the other side is gnnscale/job/fork_server.py. Standard library only.

A forked process is a child of the process that asked for it, as a fresh one is, and not of its warm parent: it ends with
the process that asked, lives on without its warm parent, and is waited for and signalled as usual. Where anything is in the
way of that, `fork` returns None, and the caller starts a fresh process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from gnnscale.contract.places import ROOT
from gnnscale.machine.process_ties import adopt_orphans, die_with_parent

FORKED_KINDS = ("train", "memory_levers", "evaluate")  # the stages that compute with torch, on this very interpreter
# Variables that a library or a stage reads when it needs them. Every other one may be read by an import (OMP_NUM_THREADS,
# OPENBLAS_CORETYPE) or by the start of a process (MALLOC_TOP_PAD_), so a warm parent serves only an equal environment.
LATE_VARIABLES = ("PWD", "OLDPWD", "CUDA_VISIBLE_DEVICES", "MASTER_ADDR", "MASTER_PORT")
# Blocked in a warm parent: a signal to its whole group is for the stages. It ends with its standard input.
BLOCKED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGHUP)
START_SECONDS = 300.0  # within which the libraries are loaded, from a shared file system too
ANSWER_SECONDS = 30.0  # within which a child reports itself
MAX_REQUEST_BYTES = 2**17  # which a socket takes as one message; a larger environment goes to a fresh process

SourceState = frozenset[tuple[str, int, int]]


class Request(NamedTuple):
    """A request for a child of a warm parent."""

    program: str  # name in gnnscale/stages/preloaded.py
    arguments: Sequence[str]
    folder: str  # its working directory
    environ: Mapping[str, str]
    parent: int  # the process that asks
    own_session: bool


class ForkedProcess:
    """A forked child of this process, used like a subprocess.Popen."""

    def __init__(self, pid: int):
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or minus the signal that ended it; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when there is one."""
        began = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is None:
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            elif time.monotonic() - began > timeout:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            else:
                time.sleep(0.02)
        return code

    def send_signal(self, signum: int) -> None:
        """Send a signal unless its end is known already; until then its number belongs to no other process."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class WarmParent:
    """A warm parent, which is started at the first request, and again when it has died or its source code has changed."""

    def __init__(self, environ: Mapping[str, str], own_session: bool = True):
        """Describe it: its environment, and whether it and its children have sessions of their own."""
        self.environ, self.own_session = dict(environ), own_session
        self.guard = threading.Lock()
        self.server: Server | None = None
        self.failed_with: SourceState | None = None  # source code with which it could not be started

    def serves(self, environ: Mapping[str, str]) -> bool:
        """Return whether this environment is the warm parent's own, but for variables that are read late."""
        return _early(environ) == _early(self.environ)

    def is_starting(self) -> bool:
        """Start it where there is none, and return whether it is still loading libraries. This does not wait."""
        with self.guard:
            if self.server is None and self.failed_with is None:
                self._is_current()
            return self._is_ready(0.0) is None

    def fork(
        self,
        program: str,
        arguments: Sequence[str],
        folder: Path,
        environ: Mapping[str, str],
        out: IO[bytes],
        err: IO[bytes],
    ) -> ForkedProcess | None:
        """Fork a child that runs a program of gnnscale/stages/preloaded.py; None = start a fresh process instead."""
        if not self.serves(environ):
            return None
        message = json.dumps(
            Request(program, arguments, str(folder), dict(environ), os.getpid(), self.own_session)
        ).encode()
        if len(message) > MAX_REQUEST_BYTES:
            return None
        with self.guard:
            for _ in range(2):  # the one that was ready before may have died
                if not (self._is_current() and self._is_ready(START_SECONDS)) or self.server is None:
                    return None
                try:
                    return self.server.send(message, out, err)
                except OSError:
                    self._close()
        return None

    def close(self) -> None:
        with self.guard:
            self._close()

    def _is_current(self) -> bool:
        """End a warm parent that has died or has old code, start another, and return whether there is one."""
        sources = read_source_state()
        if self.server is not None and (self.server.sources != sources or self.server.has_died):
            self._close()
        if self.server is None and self.failed_with != sources:
            try:
                self.server = Server(self.environ, self.own_session, sources)
            except OSError:
                self.failed_with = sources
        return self.server is not None

    def _is_ready(self, seconds: float) -> bool | None:
        """Return whether the warm parent is ready, and None if it still loads libraries after some seconds."""
        if self.server is None:
            return False
        ready = self.server.wait_until_ready(seconds)
        if ready is False:
            self.failed_with = self.server.sources
            self._close()
        return ready

    def _close(self) -> None:
        if self.server is not None:
            self.server.close()
        self.server = None


class Server:
    """A process that runs gnnscale/stages/preloaded.py, and the socket to it, which is its standard input."""

    def __init__(self, environ: Mapping[str, str], own_session: bool, sources: SourceState):
        self.sources, self.began, self.is_ready = sources, time.monotonic(), False
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gnnscale.stages.preloaded"],
                env=environ,
                cwd="/",
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=own_session,
                preexec_fn=prepare_server,
            )

    @property
    def has_died(self) -> bool:
        """True if it was ready and has ended; one that ends before cannot serve, and another could not either."""
        return self.is_ready and self.process.poll() is not None

    def wait_until_ready(self, seconds: float) -> bool | None:
        """Return True once its libraries are loaded, False if it cannot serve, and None if it needs more time."""
        if self.is_ready:
            return True
        self.channel.settimeout(seconds)
        try:
            self.is_ready = self.channel.recv(16) == b"ready"
            return self.is_ready
        except (TimeoutError, BlockingIOError):
            return False if time.monotonic() - self.began > START_SECONDS else None
        except OSError:
            return False
        finally:
            self.channel.settimeout(None)

    def send(self, message: bytes, out: IO[bytes], err: IO[bytes]) -> ForkedProcess:
        """Let it fork a child; an OSError says that there is none."""
        if not adopt_orphans(True):
            raise OSError("this system has no subreapers")
        ours, theirs = socket.socketpair()
        with ours:
            try:
                with theirs:
                    handles = [out.fileno(), err.fileno(), theirs.fileno()]
                    socket.send_fds(self.channel, [message], handles)
                ours.settimeout(ANSWER_SECONDS)
                pid = ours.recv(16)
            finally:
                adopt_orphans(False)
            if not pid:
                raise OSError("it forked no child")
            ours.send(b"1")  # without this a child ends, so that a stage never runs twice
            return ForkedProcess(int(pid))

    def close(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()


def prepare_server() -> None:
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_SETMASK, BLOCKED_SIGNALS)


def read_source_state() -> SourceState:
    """Return the path, time and size of every file of the package, to see whether one has changed."""
    found = []
    for folder, folders, names in os.walk(ROOT / "gnnscale"):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            with suppress(OSError):  # a file that somebody writes beside another
                state = os.stat(path := os.path.join(folder, name))
                found.append((path, state.st_mtime_ns, state.st_size))
    return frozenset(found)


def _early(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in LATE_VARIABLES}
