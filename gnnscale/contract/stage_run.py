"""The run of a stage: its directory, settings and inputs, its progress, a request to stop, and the outputs that it returns."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from gnnscale.contract import files
from gnnscale.contract.command_name import command_name
from gnnscale.contract.errors import BadFile, UserError
from gnnscale.contract.results import StageResult
from gnnscale.contract.settings import Scalar
from gnnscale.contract.stage_spec import StageSpec
from gnnscale.schema import Record

S = TypeVar("S", bound=Record)

PROGRESS_SECONDS = 0.5  # between two writes of progress.json


class Stopped(Exception):
    """The end of a stage on request, after it has kept what it had."""


class Outputs(NamedTuple):
    """The outputs of a stage. Later stages depend on the digest of `files`; the files of `also` must only exist."""

    files: list[str]
    values: Mapping[str, Scalar]
    also: list[str] = []


class Run:
    """One execution of one stage."""

    def __init__(self, directory: Path):
        self.directory = directory.resolve()
        try:
            self.spec = files.read_model(self.directory / "spec.json", StageSpec)
        except BadFile as error:
            raise UserError(error.message, f"let `{command_name()}` write it, or copy it whole") from None
        self.needs = {need: (self.directory / path).resolve() for need, path in self.spec.needs.items()}
        self.can_checkpoint = False  # set by a stage that looks at stop_requested and keeps what it has
        self.stop_requested = False
        self.earlier_seconds = 0.0  # of attempts whose work this one continues; set when a checkpoint is restored
        self.earlier_attempts = 0
        self.facts: dict[str, Scalar] = {}  # about how this attempt computed, for the provenance of its result
        self._last_progress = 0.0
        self._began: dict[str, float] = {}

    def require_settings(self, kind: type[S]) -> S:
        """Return the settings of this stage; a UserError where spec.json is of another stage."""
        settings = self.spec.settings
        if not isinstance(settings, kind):
            raise UserError(
                f"{self.directory / 'spec.json'}: settings of the stage {settings.kind}, expected those of "
                f"{kind.model_fields['kind'].default}",
                f"run it with python -m gnnscale.stages.{settings.kind} {self.directory}",
            )
        return settings

    def read_inputs(self) -> dict[str, str]:
        """Read the digests of the stages that this one needs; a UserError names the first that is not done."""
        digests = {}
        for need, directory in self.needs.items():
            try:
                digests[need] = files.read_model(directory / "result.json", StageResult).digest
            except BadFile as error:
                message = f"{self.spec.id} needs {need}, which is not done: {error.message}"
                raise UserError(message, "run that stage first") from None
        return digests

    def stop(self, signum: int, frame: object = None) -> None:
        """Handle a signal to stop: at once, unless the stage will stop by itself after its next checkpoint."""
        if self.stop_requested:  # the launcher and the scheduler may both signal
            return
        self.stop_requested = True
        if not self.can_checkpoint:
            raise Stopped(f"{signal.Signals(signum).name}; run the stage again to repeat it")

    def report_progress(self, done: float, total: float, **numbers: float | None) -> None:
        """Write progress.json for people who watch: at most twice a second, and without an fsync."""
        now = time.time()
        self._began = self._began or {"began": now, "began_at": done}
        if now - self._last_progress > PROGRESS_SECONDS or done >= total:
            self._last_progress = now
            beside = self.directory / ".progress.tmp"
            beside.write_text(json.dumps({"done": done, "total": total, "time": now} | self._began | numbers))
            os.replace(beside, self.directory / "progress.json")

    def write(self, name: str, content: bytes | str) -> None:
        files.write(self.directory / name, content)
