"""Files that are either whole or absent, or locked by one process; and the question whether a stage is done.

Shared by the stages and by `workflow`, so: standard library and specs only.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from gnnscale.contract.results import OutputFile, StageResult

M = TypeVar("M", bound=BaseModel)
TRIES = 20  # within a second: who only looks whether a lock is held, holds it for a moment
HELD = (errno.EWOULDBLOCK, errno.EACCES)  # somebody has the lock; of all else, there are none on this file system
UNLOCKABLE = "a run directory on another file system: --root DIR; a Lustre must be mounted with the option flock"


class BadFile(Exception):
    """A file that we wrote earlier cannot be read as what it should be."""


def write(path: Path, content: bytes | str) -> None:
    """Write beside, fsync, rename: a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_model(path: Path, model: BaseModel) -> None:
    write(path, model.model_dump_json(indent=1) + "\n")


def read_model(path: Path, kind: type[M]) -> M:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BadFile(f"{path}: missing") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadFile(f"{path}: not a {kind.__name__}: {where}: {first['msg']}") from None


def sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(directory: Path) -> None:
    """fsync every file of a directory that some library wrote, so that a rename after it means what it says."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        else:
            sync_directory(path)
    sync_directory(directory)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(parts: object) -> str:
    """Of anything that JSON can say, independent of the order of keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def describe(directory: Path, names: list[str]) -> dict[str, OutputFile]:
    """The named files, and all files of the named directories."""
    outputs = {}
    for name in names:
        path = directory / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                stat = file.stat()
                outputs[str(file.relative_to(directory))] = OutputFile(
                    size=stat.st_size, sha256=sha256(file), mtime_ns=stat.st_mtime_ns
                )
    return outputs


class Unlockable(Exception):
    """There are no locks on this file system."""


def taken(file: IO) -> bool:
    """Whether the lock is this process's from here on, until it closes the file or ends; else another has it."""
    for left in reversed(range(TRIES)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in HELD:
                raise Unlockable(f"files cannot be locked here ({error.strerror.lower()})") from None
        if left:
            time.sleep(0.05)
    return False


def held(path: Path) -> bool:
    """Whether a process has the lock on a file."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except OSError as error:
        return error.filename is None and error.errno in HELD  # a name: it could not even be opened


def disk_is_full(directory: Path) -> bool:
    """Libraries tell a full disk in words of their own; the disk tells it in one way."""
    return shutil.disk_usage(directory).free < 64 * 1024


class Verdict(NamedTuple):
    """Whether a stage is done; if not, the reason in words."""

    result: StageResult | None
    reason: str

    @property
    def done(self) -> bool:
        return self.result is not None


def verify(directory: Path, key: str, deep: bool = False) -> Verdict:
    """Look at result.json and at each output that it lists. A file is hashed when its time has changed, or if `deep`."""
    path = directory / "result.json"
    if not path.exists():
        return Verdict(None, "interrupted before its end" if (directory / "attempts").exists() else "not run yet")
    try:
        result = read_model(path, StageResult)
    except BadFile as error:
        return Verdict(None, f"its result is unreadable ({error})")
    if result.key != key:
        return Verdict(None, f"its result is of another key ({result.key[:8]})")
    for name, expected in result.outputs.items():
        file = directory / name
        try:
            stat = file.stat()
        except OSError:
            return Verdict(None, f"output {name} is missing")
        if stat.st_size != expected.size:
            return Verdict(None, f"output {name} was altered ({stat.st_size} bytes, {expected.size} expected)")
        if (deep or stat.st_mtime_ns != expected.mtime_ns) and sha256(file) != expected.sha256:
            return Verdict(None, f"output {name} was altered (same size, other content)")
    return Verdict(result, "done")
