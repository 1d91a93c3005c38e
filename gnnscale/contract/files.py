"""Atomic file writes, checksums and locks, and the check that a stage is done.

Stages and `workflow` share it, so it needs the standard library and pydantic only.
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

from gnnscale.contract.errors import BadFile, UserError, reason_of
from gnnscale.contract.results import OutputFile, StageResult

M = TypeVar("M", bound=BaseModel)
LOCK_TRIES = 20  # within a second: a process that only looks at a lock holds it for a moment
LOCKED = (errno.EWOULDBLOCK, errno.EACCES)  # another process has the lock; any other errno: locks do not work here
LOCK_HINT = "a run directory on another file system: --root DIR; a Lustre must be mounted with the option flock"


def write(path: Path, content: bytes | str) -> None:
    """Write beside, fsync, rename: a reader sees the old content or the new, never a part of it."""
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
    """Sync every file of a directory that a library wrote, so that a rename after it publishes whole files."""
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
    """Return the digest of a value that JSON can hold; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def describe_outputs(directory: Path, names: list[str]) -> dict[str, OutputFile]:
    """Return size, time and checksum of the named files, and of all files in the named directories."""
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


def try_lock(file: IO[str]) -> bool:
    """Lock a file until this process closes it or ends; return False where another process holds the lock."""
    for tries_left in reversed(range(LOCK_TRIES)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in LOCKED:
                raise UserError(
                    f"{Path(file.name).parent}: files cannot be locked here ({reason_of(error)}), and only a lock keeps "
                    "two writers apart",
                    LOCK_HINT,
                ) from None
        if tries_left:
            time.sleep(0.05)
    return False


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except OSError as error:
        return error.filename is None and error.errno in LOCKED  # a name: it could not even be opened


def disk_is_full(directory: Path) -> bool:
    """Return whether nothing more can be written; libraries report a full disk in many different words."""
    return shutil.disk_usage(directory).free < 64 * 1024


class Verdict(NamedTuple):
    """The result of a stage that is done, or the reason why it is not."""

    result: StageResult | None
    reason: str

    @property
    def done(self) -> bool:
        return self.result is not None


def verify(directory: Path, key: str, deep: bool = False) -> Verdict:
    """Check result.json and every output that it lists. A file is hashed if its time has changed, or if `deep`."""
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
