"""What all stages share: spec.json in, result.json or error.json out, provenance, and a clean end when told to stop.

A stage is `python -m gnnscale.<stage> DIRECTORY`. Exit codes: 0 done; 75 stopped on request, run it again to go on;
64 the user must change something; 74 the disk; 137 out of memory; 1 anything else.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from gnnscale import files, image
from gnnscale.ranks import ranks
from gnnscale.specs import Scalar, StageError, StageResult, StageSpec

DONE, FAILED, REFUSED, DISK, STOPPED, MEMORY = 0, 1, 64, 74, 75, 137
EXIT = {"configuration": REFUSED, "data": REFUSED, "disk-full": DISK, "permission": DISK, "out-of-memory": MEMORY}
OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate", "CUDA out of memory", "HIP out of memory", "XPU out of memory")
PACKAGES = ("torch", "deepspeed", "adios2", "parsl", "numpy", "ase", "tblite")


class Refusal(Exception):
    """Something that only the user can put right: said in words, without a traceback."""

    def __init__(self, message: str, hint: str = "", kind: str = "configuration"):
        super().__init__(message)
        self.hint, self.kind = hint, kind


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
        fault = image.fault(self.spec.image, self.spec.code)
        if fault:
            raise Refusal(fault, "start it as command.sh of its directory does, or with `python workflow/run.py`")
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


def run(main: Callable[[Run], Outputs]) -> None:
    """The whole life of a stage's process; never returns."""
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print(f"usage: python -m {main.__module__} DIRECTORY   (which holds spec.json)", file=sys.stderr)
        sys.exit(DONE if "-h" in sys.argv or "--help" in sys.argv else REFUSED)
    directory, first, code = Path(sys.argv[1]), ranks().rank == 0, DONE
    if "GNNSCALE_STACKS" not in os.environ:  # else gnnscale/stacks.py has done so
        faulthandler.register(signal.SIGUSR2)  # `kill -USR2` shows on standard error where it is
    try:
        this = Run(directory)
        this.lock = hold(this.directory) if first else None  # to the end of the process
        for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(signum, this.stop)
        finish(this, main, first)
    except Stopped as stop:
        print(f"stopped: {stop}")
        code = STOPPED
    except BaseException as error:
        code = report(directory, error, first)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads were seen to abort a process that ends the long way, with its work done


def finish(this: Run, main: Callable[[Run], Outputs], first: bool) -> None:
    """Run the stage and write its result, with what it cost and where it was made."""
    if first:
        for stale in ("result.json", "error.json"):
            (this.directory / stale).unlink(missing_ok=True)
    inputs = this.read_inputs()
    started, clock = time.time(), time.monotonic()
    outputs = main(this)
    if not first:
        return
    listed = files.describe(this.directory, outputs.files)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = StageResult(
        id=this.spec.id,
        key=this.spec.key,
        outputs=listed | files.describe(this.directory, outputs.also),
        digest=files.digest({name: output.sha256 for name, output in listed.items()}),
        inputs=inputs,
        values=outputs.values,
        started=started,
        seconds=this.earlier_seconds + time.monotonic() - clock,
        cpu_seconds=usage.ru_utime + usage.ru_stime + children.ru_utime + children.ru_stime,
        peak_bytes=usage.ru_maxrss * 1024,
        attempts=this.earlier_attempts + 1,
        provenance=provenance(),
    )
    files.write_model(this.directory / "result.json", result)


def hold(directory: Path) -> object:
    """Two writers in one directory would spoil it: the second is refused. The kernel drops the lock with the process."""
    try:
        lock = open(directory / "lock", "a+")
    except OSError as error:
        raise Refusal(f"{directory}: {error.strerror.lower()}", "make it writable", "permission") from None
    try:
        free = files.taken(lock)
    except files.Unlockable as error:
        raise Refusal(f"{directory}: {error}", files.UNLOCKABLE) from None
    if not free:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        raise Refusal(f"{directory} is in use by {holder}", "wait for it, or stop it")
    lock.truncate(0)
    lock.write(f"{platform.node()} pid {os.getpid()}\n")
    lock.flush()
    return lock


def report(directory: Path, error: BaseException, first: bool) -> int:
    """Leave error.json and a log that ends with what to do; the traceback only where the mistake is ours."""
    kind, message, hint = classify(error, directory)
    if kind == "application":
        traceback.print_exception(error)
    print(f"error ({kind}): {message}" + (f"\n  {hint}" if hint else ""), file=sys.stderr, flush=True)
    if first and directory.is_dir():
        spec_id = "/".join(directory.resolve().parts[-2:])
        try:
            files.write_model(directory / "error.json", StageError(id=spec_id, kind=kind, message=message, hint=hint))
        except OSError:
            pass  # a full disk cannot hold its own error; the exit code says it
    return EXIT.get(kind, FAILED)


def classify(error: BaseException, directory: Path = Path()) -> tuple[str, str, str]:
    """(kind, message, what to do)"""
    number = error.errno if isinstance(error, OSError) else None
    words = str(error) or type(error).__name__
    if isinstance(error, Refusal):
        return error.kind, words, error.hint
    if isinstance(error, files.BadFile):
        return "data", words, getattr(error, "hint", "delete its directory; the next run makes it again")
    if isinstance(error, FileNotFoundError) and error.errno is None:  # a converter's own: it says what to download
        return "data", words, ""
    if isinstance(error, MemoryError) or any(said in words for said in OUT_OF_MEMORY):
        return "out-of-memory", words.splitlines()[0], "smaller batch or model, or more ranks"
    if number in (errno.ENOSPC, errno.EDQUOT) or (directory.is_dir() and files.disk_is_full(directory)):
        return "disk-full", "no space left on device", "free some space, then type the same command again"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "permission", f"{error.filename}: {error.strerror.lower()}", "make it writable"
    return "application", f"{type(error).__name__}: {error}", ""


def provenance() -> dict[str, Scalar]:
    """Versions, commit and machine: enough to know what made a result."""
    facts: dict[str, Scalar] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "host": platform.node(),
    }
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    facts["processor"], facts["cores"] = processor(), os.cpu_count()
    if "torch" in sys.modules:  # else it computed nothing that a GPU could
        from gnnscale import accelerator

        if seen := accelerator.devices():
            facts["accelerator"] = seen[0].name
    root = Path(__file__).parent.parent
    try:
        git = ["git", "-C", str(root)]
        facts["commit"] = (
            subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip() or None
        )
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
        facts["modified"] = bool(status.stdout.strip())
    except OSError:
        facts["commit"] = None
    return facts | image.provenance()


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
