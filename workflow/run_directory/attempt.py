"""TODO: say what a reader finds here."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Literal, NamedTuple

from gnnscale.contract import files
from gnnscale.contract.errors import BadFile, describe_os_error, reason_of
from gnnscale.contract.results import StageError
from gnnscale.contract.stage_spec import StageSpec
from gnnscale.schema import Spec
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


def prepare_attempt(folder: Path, spec: StageSpec, command: str) -> Path:
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
    tail = read_tail(attempt / "stderr") or read_tail(attempt / "stdout")
    try:
        error = files.read_model(folder / "error.json", StageError)
        return Failure(stage.id, error.kind, error.message, error.hint, tail if error.kind == "application" else ())
    except BadFile:
        pass
    if files.disk_is_full(folder):
        return disk_error_outcome(stage, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)))
    if code < 0:
        name = signal.Signals(-code).name
        why = "; if nobody did that, the machine ran out of memory" if name == "SIGKILL" else ""
        return Failure(stage.id, "killed", f"killed by {name}{why}", "type the same command again to go on", tail)
    if code == 0:
        return Failure(stage.id, "application", f"ended without a valid result: {verdict}", "", tail)
    return Failure(stage.id, "application", f"exit code {code}", "", tail)


def disk_error_outcome(stage: Stage, error: OSError) -> Failure:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    message = reason_of(error) if full else describe_os_error(error)
    hint = "free some space, then type the same command again" if full else "make it writable"
    return Failure(stage.id, "disk-full" if full else "permission", message, hint, ())


def read_tail(path: Path) -> tuple[str, ...]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("error (")]
    return tuple(lines[-TAIL_LINES:])  # without the line that says the message again


OutcomeKind = Literal[
    "done",
    "not-begun",
    "stopped",
    "walltime",
    "preempted",
    "cancelled",
    "withdrawn",
    "node",
    "lost",
    "stalled",
    "memory",
    "disk-full",
    "busy",
    "configuration",
    "data",
    "permission",
    "application",
]


class ExitRecord(Spec):
    """exit.json of an attempt, as the job's script leaves it."""

    code: int
    rank: int | None
    host: str
    launcher: int
    job: str
    hosts: tuple[str, ...]
    begin: int
    end: int
    begun: bool = True
    sick: dict[str, str] = {}  # node -> why it is not fit


class AttemptOutcome(NamedTuple):
    kind: OutcomeKind
    message: str
    hint: str = ""
    hosts: tuple[str, ...] = ()  # to be avoided
    begun: bool = True
    tail: tuple[str, ...] = ()  # last words that say more than those in its files
