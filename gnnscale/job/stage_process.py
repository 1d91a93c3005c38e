"""The process around a stage: spec.json in, result.json or error.json out, one writer, provenance, a clean end on request.

A stage is `python -m gnnscale.stages.STAGE DIRECTORY`; its exit codes are in gnnscale/contract/exit_codes.py.
"""

from __future__ import annotations

import contextlib
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
from typing import IO

from gnnscale.contract import exit_codes, files
from gnnscale.contract.command_name import command_name
from gnnscale.contract.errors import BadFile, UserError, describe_os_error, print_error, reason_of
from gnnscale.contract.places import IS_INSTALLED, ROOT
from gnnscale.contract.results import StageError, StageResult
from gnnscale.contract.settings import Scalar
from gnnscale.contract.stage_run import Outputs, Run, Stopped
from gnnscale.job import container
from gnnscale.machine.rank_env import read_ranks

PACKAGES = ("torch", "deepspeed", "adios2", "parsl", "numpy", "ase", "tblite")


def run(main: Callable[[Run], Outputs], shared_cpu_seconds: float = 0.0) -> None:
    """Run a stage from its command line, and exit.

    shared_cpu_seconds: of a warm parent since its last child, so that the sum over all stages counts them once
    """
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print(f"usage: python -m {main.__module__} DIRECTORY   (which holds spec.json)", file=sys.stderr)
        sys.exit(exit_codes.DONE if "-h" in sys.argv or "--help" in sys.argv else exit_codes.REFUSED)
    directory, first, code = Path(sys.argv[1]), read_ranks().rank == 0, exit_codes.DONE
    if "GNNSCALE_STACKS" not in os.environ:  # else gnnscale/job/stack_dump.py has done so
        faulthandler.register(signal.SIGUSR2)  # `kill -USR2` prints the stacks on standard error
    try:
        this = Run(directory)
        if fault := container.find_mismatch(this.spec.image, this.spec.code):
            raise UserError(fault, f"start it as command.sh of its directory does, or with `{command_name()}`")
        _lock = lock_directory(this.directory) if first else None  # held until the process ends
        for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(signum, this.stop)
        run_and_record(this, main, first, shared_cpu_seconds)
    except Stopped as stop:
        print(f"stopped: {stop}")
        code = exit_codes.STOPPED
    except BaseException as error:
        code = report_error(directory, error, first)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads were seen to abort a process that ended by sys.exit, with its work done


def run_and_record(this: Run, main: Callable[[Run], Outputs], first: bool, shared_cpu_seconds: float = 0.0) -> None:
    """Run the stage and, on the first rank, write its result with its cost and provenance."""
    if first:
        for stale in ("result.json", "error.json"):
            (this.directory / stale).unlink(missing_ok=True)
    inputs = this.read_inputs()
    started, clock, start_cpu_seconds = time.time(), time.monotonic(), shared_cpu_seconds + measure_cpu_seconds()
    outputs = main(this)
    if not first:
        return
    listed = files.describe_outputs(this.directory, outputs.files)
    result = StageResult(
        id=this.spec.id,
        key=this.spec.key,
        outputs=listed | files.describe_outputs(this.directory, outputs.also),
        digest=files.digest({name: output.sha256 for name, output in listed.items()}),
        inputs=inputs,
        values=outputs.values,
        started=started,
        seconds=this.earlier_seconds + time.monotonic() - clock,
        cpu_seconds=shared_cpu_seconds + measure_cpu_seconds(),
        start_cpu_seconds=start_cpu_seconds,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        attempts=this.earlier_attempts + 1,
        provenance=collect_provenance() | this.facts,
    )
    files.write_model(this.directory / "result.json", result)


def measure_cpu_seconds() -> float:
    """Return the CPU time of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def lock_directory(directory: Path) -> IO[str]:
    """Lock the stage's directory against a second writer. The kernel drops the lock with the process."""
    try:
        lock = open(directory / "lock", "a+")
    except OSError as error:
        raise UserError(f"{directory}: {reason_of(error)}", "make it writable", kind="permission") from None
    if not files.try_lock(lock):
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        raise UserError(f"{directory} is in use by {holder}", "wait for it, or stop it")
    lock.truncate(0)
    lock.write(f"{platform.node()} pid {os.getpid()}\n")
    lock.flush()
    return lock


def report_error(directory: Path, error: BaseException, first: bool) -> int:
    """Print the error (a traceback only for bugs), leave it in error.json, and return the exit code."""
    explained = explain_error(error, directory)
    if explained.kind == "application":
        traceback.print_exception(error)
    print_error(explained, f"error ({explained.kind})")
    if first and directory.is_dir():
        stage_id = "/".join(directory.resolve().parts[-2:])
        words = StageError(id=stage_id, kind=explained.kind, message=explained.message, hint="; ".join(explained.hints))
        with contextlib.suppress(OSError):  # a full disk cannot hold its own error; the exit code reports it
            files.write_model(directory / "error.json", words)
    return exit_codes.CODE_OF_KIND.get(explained.kind, exit_codes.FAILED)


def explain_error(error: BaseException, directory: Path = Path()) -> UserError:
    """Return the error in words for its user; its kind is `application` where the mistake is ours."""
    words = str(error) or type(error).__name__
    if isinstance(error, UserError):
        remake = ("delete its directory; the next run makes it again",) if isinstance(error, BadFile) else ()
        return UserError(error.message, *(error.hints or remake), kind=error.kind)
    if isinstance(error, FileNotFoundError) and error.errno is None:  # a converter's own: it names what to download
        return UserError(words, kind="data")
    if isinstance(error, MemoryError) or any(pattern in words for pattern in exit_codes.OUT_OF_MEMORY_WORDS):
        return UserError(words.splitlines()[0], "smaller batch or model, or more ranks", kind="out-of-memory")
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or (directory.is_dir() and files.disk_is_full(directory)):
        hint = "free some space, then type the same command again"
        return UserError("no space left on device", hint, kind="disk-full")
    if isinstance(error, OSError) and number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(describe_os_error(error), "make it writable", kind="permission")
    return UserError(f"{type(error).__name__}: {error}", kind="application")


def collect_provenance() -> dict[str, Scalar]:
    """Return versions, commit and machine: enough to know what made a result."""
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
    facts["processor"], facts["cores"] = read_processor_name(), os.cpu_count()
    if "torch" in sys.modules:  # otherwise it computed nothing on a GPU
        from gnnscale.machine import accelerator

        if seen := accelerator.list_devices():
            facts["accelerator"] = seen[0].name
    if not IS_INSTALLED:  # a repository around site-packages would be another one
        facts |= checkout_state()
    return facts | container.describe_image()


def checkout_state() -> dict[str, Scalar]:
    """Return the commit of the checkout, and whether its files differ from it."""
    facts: dict[str, Scalar] = {}
    try:
        git = ["git", "-C", str(ROOT)]
        facts["commit"] = (
            subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip() or None
        )
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
        facts["modified"] = bool(status.stdout.strip())
    except OSError:
        facts["commit"] = None
    return facts


def read_processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
