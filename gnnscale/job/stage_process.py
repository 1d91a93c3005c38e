"""What all stages share: spec.json in, result.json or error.json out, provenance, and a clean end when told to stop.

A stage is `python -m gnnscale.stages.STAGE DIRECTORY`. Exit codes: 0 done; 75 stopped on request, run it again to go on;
64 the user must change something; 74 the disk; 137 out of memory; 1 anything else.
"""

from __future__ import annotations

import errno
import faulthandler
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

from gnnscale.contract import files
from gnnscale.contract.errors import Refusal
from gnnscale.contract.exit_codes import DONE, EXIT, FAILED, OUT_OF_MEMORY, REFUSED, STOPPED
from gnnscale.contract.places import ROOT
from gnnscale.contract.results import StageError, StageResult
from gnnscale.contract.settings import Scalar
from gnnscale.contract.stage_run import Outputs, Run, Stopped
from gnnscale.job import container
from gnnscale.machine.rank_env import ranks

PACKAGES = ("torch", "deepspeed", "adios2", "parsl", "numpy", "ase", "tblite")


def run(main: Callable[[Run], Outputs]) -> None:
    """The whole life of a stage's process; never returns."""
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print(f"usage: python -m {main.__module__} DIRECTORY   (which holds spec.json)", file=sys.stderr)
        sys.exit(DONE if "-h" in sys.argv or "--help" in sys.argv else REFUSED)
    directory, first, code = Path(sys.argv[1]), ranks().rank == 0, DONE
    if "GNNSCALE_STACKS" not in os.environ:  # else gnnscale/job/stack_dump.py has done so
        faulthandler.register(signal.SIGUSR2)  # `kill -USR2` shows on standard error where it is
    try:
        this = Run(directory)
        if fault := container.fault(this.spec.image, this.spec.code):
            raise Refusal(fault, "start it as command.sh of its directory does, or with `python workflow/run.py`")
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
        from gnnscale.machine import accelerator

        if seen := accelerator.devices():
            facts["accelerator"] = seen[0].name
    try:
        git = ["git", "-C", str(ROOT)]
        facts["commit"] = (
            subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip() or None
        )
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
        facts["modified"] = bool(status.stdout.strip())
    except OSError:
        facts["commit"] = None
    return facts | container.provenance()


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
