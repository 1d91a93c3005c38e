"""Stages as child processes of the driver, for a site without a scheduler, and the judgement of how each ended."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gnnscale.contract import exit_codes, files
from gnnscale.contract.results import StageResult
from gnnscale.machine.process_ties import die_with_parent
from gnnscale.machine.warm_parent import FORKED_KINDS, ForkedProcess, WarmParent
from workflow.config.site import SiteConfig
from workflow.images import runtimes
from workflow.jobs import launch
from workflow.plan.stage import Stage
from workflow.run_directory.attempt import (
    DISK_FULL,
    INTERRUPTED,
    AttemptOutcome,
    StageUnfinished,
    disk_error_outcome,
    prepare_attempt,
    read_last_output,
    read_stage_error,
)

SECONDS_TO_SIGKILL = 1.3  # after SIGTERM; a training writes its checkpoint in this time, or falls back on its last

Process = subprocess.Popen[bytes] | ForkedProcess


class LocalProcesses:
    """Runner of stages, each in a process group of its own, that can stop them all."""

    def __init__(self, root: Path, site: SiteConfig, stages: dict[str, Stage]):
        self.root, self.site, self.stages = root, site, stages
        self.stopping = threading.Event()
        self.running: dict[str, Process] = {}
        self.gpus = GpuPool(site, self.stopping)
        self.environ = os.environ | launch.stage_variables(site)
        self.warm_parent = WarmParent(self.environ)

    def run(self, stage: Stage) -> StageResult:
        """Run the stage until it is done, again each time that it stops with its work saved."""
        folder = self.root / stage.folder
        ranks = stage.levers.runtime.ranks if stage.levers else 1
        while True:
            try:
                with self.gpus.reserve(ranks if stage.levers or stage.kind == "evaluate" else 0) as visible:
                    attempt = self.prepare(stage, folder, ranks)
                    code = self.execute(stage, folder, attempt, visible)
            except OSError as error:
                raise StageUnfinished(disk_error_outcome(error)) from None
            if self.stopping.is_set():
                raise StageUnfinished(INTERRUPTED)
            if code != exit_codes.STOPPED:
                break
        verdict = files.verify(folder, stage.key)
        if code == 0 and verdict.result is not None:
            return verdict.result
        raise StageUnfinished(judge_process(folder, attempt, code, verdict.reason))

    def prepare(self, stage: Stage, folder: Path, ranks: int) -> Path:
        if self.stopping.is_set():
            raise StageUnfinished(INTERRUPTED)
        command = launch.render_command(stage, self.site, self.root, ranks=ranks)
        return prepare_attempt(folder, stage.spec(self.stages), command)

    def execute(self, stage: Stage, folder: Path, attempt: Path, visible: dict[str, str]) -> int:
        with open(attempt / "stdout", "wb") as out, open(attempt / "stderr", "wb") as err:
            process = self.fork(stage, folder, visible, out, err) or self.spawn(stage, folder, visible, out, err)
            self.running[stage.id] = process
            try:
                return process.wait()
            finally:
                self.running.pop(stage.id, None)
                if isinstance(process, subprocess.Popen) and process.stdin is not None:
                    process.stdin.close()

    def fork(
        self, stage: Stage, folder: Path, visible: dict[str, str], out: IO[bytes], err: IO[bytes]
    ) -> ForkedProcess | None:
        """Run a stage of one rank in a process that has its libraries already; None where command.sh must start it."""
        if stage.kind not in FORKED_KINDS or stage.image or (stage.levers and stage.levers.runtime.ranks > 1):
            return None
        environ = self.environ | visible | {"PWD": str(folder)}
        return self.warm_parent.fork(stage.kind, ["."], folder, environ, out, err)

    def spawn(self, stage: Stage, folder: Path, visible: dict[str, str], out: IO[bytes], err: IO[bytes]) -> Process:
        """Run command.sh of a stage in a process group of its own."""
        lifeline = {runtimes.LIFELINE_VARIABLE: "1"} if stage.image else {}
        return subprocess.Popen(
            ["sh", str(folder / "command.sh")],
            env=os.environ | visible | lifeline,
            stdout=out,
            stderr=err,
            stdin=subprocess.PIPE if lifeline else subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=kill_with_driver(os.getpid()),
        )

    def stop(self) -> None:
        """Send SIGTERM to every group, and SIGKILL to those that remain after a moment."""
        self.stopping.set()
        signal_all(list(self.running.values()), signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_SIGKILL
        while self.running and time.monotonic() < deadline:
            time.sleep(0.02)
        signal_all(list(self.running.values()), signal.SIGKILL)

    def close(self) -> None:
        """End the process from which stages are forked; they do not need it any more."""
        self.warm_parent.close()


class GpuPool:
    """GPUs of this machine, if the site's file names any: each belongs to one stage at a time, and a rank has one."""

    def __init__(self, site: SiteConfig, stopping: threading.Event):
        self.stopping, self.change = stopping, threading.Condition()
        self.variable = ""  # by which a process is shown its GPUs
        self.free: list[str] = []
        if site.node.gpus and not site.has_scheduler:
            self.variable = site.node.gpus.visible_variable
            inherited = os.environ.get(self.variable)  # the driver may own a part of the machine
            self.free = inherited.split(",") if inherited else [str(k) for k in range(site.node.gpus.count)]

    @contextmanager
    def reserve(self, count: int) -> Iterator[dict[str, str]]:
        """Wait for `count` free GPUs, and yield the variable that shows them; yield nothing where there are none."""
        if not count or not self.variable:
            yield {}
            return
        with self.change:
            while len(self.free) < count and not self.stopping.is_set():
                self.change.wait(0.5)
            reserved, self.free = self.free[:count], self.free[count:]
        try:
            yield {self.variable: ",".join(reserved)}
        finally:
            with self.change:
                self.free = reserved + self.free
                self.change.notify_all()


def judge_process(folder: Path, attempt: Path, code: int, reason_invalid: str) -> AttemptOutcome:
    """Judge a process by error.json if the stage could write it, else by the exit code and the last printed lines."""
    tail = read_last_output(attempt)
    if error := read_stage_error(folder):
        return AttemptOutcome(error.kind, error.message, error.hint, tail if error.kind == "application" else ())
    if files.disk_is_full(folder):
        return DISK_FULL
    if code < 0:
        name = signal.Signals(-code).name
        why = "; if nobody did that, the machine ran out of memory" if name == "SIGKILL" else ""
        return AttemptOutcome("killed", f"killed by {name}{why}", "type the same command again to go on", tail)
    message = f"exit code {code}" if code else f"ended without a valid result: {reason_invalid}"
    return AttemptOutcome("application", message, tail=tail)


def kill_with_driver(driver: int) -> Callable[[], None]:
    """Return a function for the child to call before exec, so that a stage dies with its driver, however that dies."""

    def request_death_signal() -> None:
        die_with_parent()
        if os.getppid() != driver:
            os._exit(1)  # the driver died between fork and here

    return request_death_signal


def signal_all(processes: list[Process], signum: int) -> None:
    for process in processes:
        try:
            os.killpg(process.pid, signum)
        except ProcessLookupError:
            pass
