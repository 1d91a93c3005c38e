"""TODO: say what a reader finds here."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract import files
from gnnscale.contract.errors import Refusal
from gnnscale.contract.results import StageResult
from gnnscale.contract.settings import Scalar
from gnnscale.contract.stage_spec import StageSpec


class Stopped(Exception):
    """The stage was told to stop and has kept what it had."""


class Outputs(NamedTuple):
    """What a stage leaves: `files` make the digest on which later stages depend; `also` must merely exist."""

    files: list[str]
    values: dict[str, Scalar]
    also: list[str] = []


class Run:
    """One execution of one stage."""

    def __init__(self, directory: Path):
        self.directory = directory.resolve()
        try:
            self.spec = files.read_model(self.directory / "spec.json", StageSpec)
        except files.BadFile as error:
            raise Refusal(str(error), "let `python workflow/run.py` write it, or copy it whole") from None
        self.needs = {need: (self.directory / path).resolve() for need, path in self.spec.needs.items()}
        self.can_checkpoint = False  # set by a stage that looks at stop_requested and keeps what it has
        self.stop_requested = False
        self.earlier_seconds = 0.0  # of attempts whose work this one continues; set by who restores a checkpoint
        self.earlier_attempts = 0
        self._last_progress, self._began = 0.0, {}

    def read_inputs(self) -> dict[str, str]:
        """The digests of what this stage needs. Each must be done; who runs a stage by hand is told which is not."""
        digests = {}
        for need, directory in self.needs.items():
            try:
                digests[need] = files.read_model(directory / "result.json", StageResult).digest
            except files.BadFile as error:
                raise Refusal(
                    f"{self.spec.id} needs {need}, which is not done: {error}", "run that stage first"
                ) from None
        return digests

    def stop(self, signum: int, frame: object = None) -> None:
        """Told to stop: at once, unless the stage will do so itself at its next good moment."""
        if self.stop_requested:  # by the launcher and by the scheduler: once is enough
            return
        self.stop_requested = True
        if not self.can_checkpoint:
            raise Stopped(f"{signal.Signals(signum).name}; run it again to do it again")

    def progress(self, done: float, total: float, **numbers: float) -> None:
        """For people who watch; written at most twice a second, and worth no fsync."""
        now = time.time()
        self._began = self._began or {"began": now, "began_at": done}
        if now - self._last_progress > 0.5 or done >= total:
            self._last_progress = now
            beside = self.directory / ".progress.tmp"
            beside.write_text(json.dumps({"done": done, "total": total, "time": now} | self._began | numbers))
            os.replace(beside, self.directory / "progress.json")

    def write(self, name: str, content: bytes | str) -> None:
        files.write(self.directory / name, content)
