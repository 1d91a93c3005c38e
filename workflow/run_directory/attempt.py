"""TODO: say what a reader finds here."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract import files
from gnnscale.contract.results import StageError
from gnnscale.contract.stage_spec import StageSpec
from workflow.plan.stage import Stage

TAIL_LINES = 12


class Failure(NamedTuple):
    """Why a stage failed, for one line and a little more on the screen."""

    id: str
    kind: str
    message: str
    hint: str
    tail: tuple[str, ...]


class StageFailed(Exception):
    def __init__(self, failure: Failure):
        super().__init__(f"{failure.id}: {failure.message}")
        self.failure = failure


class Interrupted(Exception):
    """The driver is stopping; the stage was not finished and not failed."""


def prepare(folder: Path, spec: StageSpec, command: str) -> Path:
    """The directory of the next attempt, and a stage's directory in which nothing speaks of an earlier one."""
    number = 1 + max((int(p.name) for p in (folder / "attempts").glob("[0-9]*")), default=0)
    attempt = folder / "attempts" / str(number)
    attempt.mkdir(parents=True)
    files.write_model(folder / "spec.json", spec)
    files.write(folder / "command.sh", command)
    (folder / "error.json").unlink(missing_ok=True)
    (folder / "progress.json").unlink(missing_ok=True)
    return attempt


def failure(stage: Stage, folder: Path, attempt: Path, code: int, verdict: str) -> Failure:
    """From error.json where the stage could still write it, else from how it died and its last words."""
    tail = last_lines(attempt / "stderr") or last_lines(attempt / "stdout")
    try:
        error = files.read_model(folder / "error.json", StageError)
        return Failure(stage.id, error.kind, error.message, error.hint, tail if error.kind == "application" else ())
    except files.BadFile:
        pass
    if files.disk_is_full(folder):
        return disk_failure(stage, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)))
    if code < 0:
        name = signal.Signals(-code).name
        why = "; if nobody did that, the machine ran out of memory" if name == "SIGKILL" else ""
        return Failure(stage.id, "killed", f"killed by {name}{why}", "type the same command again to go on", tail)
    if code == 0:
        return Failure(stage.id, "application", f"ended without a valid result: {verdict}", "", tail)
    return Failure(stage.id, "application", f"exit code {code}", "", tail)


def disk_failure(stage: Stage, error: OSError) -> Failure:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    message = error.strerror.lower() if full else f"{error.filename}: {error.strerror.lower()}"
    hint = "free some space, then type the same command again" if full else "make it writable"
    return Failure(stage.id, "disk-full" if full else "permission", message, hint, ())


def last_lines(path: Path) -> tuple[str, ...]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("error (")]
    return tuple(lines[-TAIL_LINES:])  # without the line that says the message again
