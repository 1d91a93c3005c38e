"""Attempts of a stage on disk: how one is prepared, the records that it leaves, and the type for how it ended."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from gnnscale.contract import files
from gnnscale.contract.errors import BadFile, describe_os_error, reason_of
from gnnscale.contract.results import StageError
from gnnscale.contract.stage_spec import StageSpec
from gnnscale.schema import Record

TAIL_LINES = 12
TAIL_BYTES = 8192
# Launchers report last, and only that a process ended; container runtimes say why they started none.
LAUNCHER_LINE = re.compile(
    r"^(srun|slurmstepd|mpiexec|mpirun|prterun|flux-\w+|jsrun)\b|Terminating StepId|Exited with exit code"
)
RUNTIME_ERROR = re.compile(r"^(Error|ERROR|FATAL)\b")

OutcomeKind = Literal[
    "done",
    "interrupted",
    "not-begun",
    "stopped",
    "walltime",
    "preempted",
    "cancelled",
    "withdrawn",
    "killed",
    "node",
    "lost",
    "stalled",
    "out-of-memory",
    "disk-full",
    "busy",
    "configuration",
    "data",
    "permission",
    "application",
]


class AttemptOutcome(NamedTuple):
    """End of an attempt, by a local process or by a batch job: decides on the next one, and is printed if there is none."""

    kind: OutcomeKind
    message: str
    hint: str = ""
    tail: tuple[str, ...] = ()  # last printed lines, where the message alone does not say why
    bad_hosts: tuple[str, ...] = ()  # nodes that the next attempt avoids
    begun: bool = True  # False: the stage never got to run


INTERRUPTED = AttemptOutcome("interrupted", "the driver is stopping")
DISK_FULL = AttemptOutcome("disk-full", "no space left on device", "free some space, then type the same command again")


class StageUnfinished(Exception):
    """End of a stage without a result; carries the outcome of its last attempt."""

    def __init__(self, outcome: AttemptOutcome):
        super().__init__(outcome.message)
        self.outcome = outcome


class ExitRecord(Record):
    """exit.json of an attempt, as the script of its batch job leaves it."""

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


def prepare_attempt(folder: Path, spec: StageSpec, command: str) -> Path:
    """Make the directory of the next attempt, and remove error.json and progress.json of an earlier one."""
    number = 1 + max((int(p.name) for p in (folder / "attempts").glob("[0-9]*")), default=0)
    attempt = folder / "attempts" / str(number)
    attempt.mkdir(parents=True)
    files.write_model(folder / "spec.json", spec)
    files.write(folder / "command.sh", command)
    (folder / "error.json").unlink(missing_ok=True)
    (folder / "progress.json").unlink(missing_ok=True)
    return attempt


def read_stage_error(folder: Path) -> StageError | None:
    """Read error.json, if the stage could still write it."""
    try:
        return files.read_model(folder / "error.json", StageError)
    except BadFile:
        return None


def read_exit_record(attempt: Path) -> ExitRecord | None:
    """Read exit.json of an attempt, if its job could still write it."""
    try:
        return files.read_model(attempt / "exit.json", ExitRecord)
    except BadFile:
        return None


def disk_error_outcome(error: OSError) -> AttemptOutcome:
    """Return the outcome for a full disk, or for a directory that cannot be written to."""
    if is_disk_full(error):
        return DISK_FULL._replace(message=reason_of(error))
    return AttemptOutcome("permission", describe_os_error(error), "make it writable")


def is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def read_tail(path: Path, max_lines: int = TAIL_LINES, max_bytes: int = TAIL_BYTES) -> tuple[str, ...]:
    """Read the last lines that were printed, without blank ones and without the line that repeats error.json."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - max_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("error (")]
    return tuple(lines[-max_lines:])


def read_last_output(attempt: Path) -> tuple[str, ...]:
    """Read the last lines of the first of an attempt's output files that is not empty."""
    return next(filter(None, (read_tail(attempt / name) for name in ("stderr", "stdout", "job.out"))), ())


def find_telling_line(lines: Sequence[str]) -> str:
    """Return the printed line that says most: the last error of a container runtime, or the last line of no launcher."""
    own = [line for line in lines if not LAUNCHER_LINE.search(line)]
    errors = [line for line in own if RUNTIME_ERROR.match(line)]
    return next((found[-1].strip() for found in (errors, own, lines) if found), "")
