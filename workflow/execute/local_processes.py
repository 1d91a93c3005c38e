"""Stages as child processes of this driver, for a site without a scheduler."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.results import StageResult
from workflow.config.site import SiteConfig
from workflow.images import runtimes
from workflow.jobs import launch
from workflow.plan.stage import Stage
from workflow.run_directory.attempt import Interrupted, StageFailed, disk_failure, failure, prepare

GRACE_SECONDS = 1.3  # from SIGTERM to SIGKILL; a training writes its checkpoint in this time, or falls back on its last
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here, not between fork and exec
CONTINUE = 75  # exit code: stopped on request, run again to go on


class Processes:
    """Runs stages, each in a process group of its own, and can stop them all."""

    def __init__(self, root: Path, site: SiteConfig, stages: dict[str, Stage]):
        self.root, self.site, self.stages = root, site, stages
        self.stopping = threading.Event()
        self.running: dict[str, subprocess.Popen] = {}
        self.gpus = Gpus(site, self.stopping)

    def run(self, stage: Stage) -> StageResult:
        """Until the stage is done. A stage that stopped itself after keeping its work is run again."""
        folder = self.root / stage.folder
        ranks = stage.levers.runtime.ranks if stage.levers else 1
        while True:
            try:
                with self.gpus.taken(ranks if stage.levers or stage.kind == "evaluate" else 0) as visible:
                    attempt = self.prepare(stage, folder, ranks)
                    code = self.execute(stage, folder, attempt, visible)
            except OSError as error:
                raise StageFailed(disk_failure(stage, error)) from None
            if self.stopping.is_set():
                raise Interrupted(stage.id)
            if code != CONTINUE:
                break
        verdict = files.verify(folder, stage.key)
        if code == 0 and verdict.done:
            return verdict.result
        raise StageFailed(failure(stage, folder, attempt, code, verdict.reason))

    def prepare(self, stage: Stage, folder: Path, ranks: int) -> Path:
        if self.stopping.is_set():
            raise Interrupted(stage.id)
        return prepare(folder, stage.spec(self.stages), launch.script(stage, self.site, self.root, ranks=ranks))

    def execute(self, stage: Stage, folder: Path, attempt: Path, visible: dict[str, str]) -> int:
        with open(attempt / "stdout", "wb") as out, open(attempt / "stderr", "wb") as err:
            lifeline = {runtimes.LIFELINE: "1"} if stage.image else {}
            process = subprocess.Popen(
                ["sh", str(folder / "command.sh")],
                env=os.environ | visible | lifeline,
                stdout=out,
                stderr=err,
                stdin=subprocess.PIPE if lifeline else subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=die_with(os.getpid()),
            )
            self.running[stage.id] = process
            try:
                return process.wait()
            finally:
                self.running.pop(stage.id, None)
                if process.stdin is not None:
                    process.stdin.close()

    def stop(self) -> None:
        """SIGTERM to every group, SIGKILL to what is left after the grace."""
        self.stopping.set()
        signal_all(list(self.running.values()), signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while self.running and time.monotonic() < deadline:
            time.sleep(0.02)
        signal_all(list(self.running.values()), signal.SIGKILL)


class Gpus:
    """Of this machine, if the site's file names any: each belongs to one stage at a time; a rank has one."""

    def __init__(self, site: SiteConfig, stopping: threading.Event):
        self.stopping, self.name, self.free, self.change = stopping, "", [], threading.Condition()
        if site.node.gpus and not site.batch:
            self.name = site.node.gpus.visible
            mine = os.environ.get(self.name)  # of a part of the machine
            self.free = mine.split(",") if mine else [str(k) for k in range(site.node.gpus.count)]

    @contextmanager
    def taken(self, count: int) -> Iterator[dict[str, str]]:
        """The variable that shows `count` of them, as soon as so many are free; nothing where there are none."""
        if not count or not self.name:
            yield {}
            return
        with self.change:
            while len(self.free) < count and not self.stopping.is_set():
                self.change.wait(0.5)
            mine, self.free = self.free[:count], self.free[count:]
        try:
            yield {self.name: ",".join(mine)}
        finally:
            with self.change:
                self.free = mine + self.free
                self.change.notify_all()


def die_with(driver: int) -> Callable[[], None] | None:
    """A stage must not outlive its driver, however that dies; set in the child before anything else runs there."""
    if LIBC is None:
        return None

    def ask_linux() -> None:
        LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, kept through exec
        if os.getppid() != driver:
            os._exit(1)  # it died between fork and here

    return ask_linux


def signal_all(processes: list[subprocess.Popen], signum: int) -> None:
    for process in processes:
        try:
            os.killpg(process.pid, signum)
        except ProcessLookupError:
            pass
