"""A small real job of a site, started as a training is, in which each rank reports what it sees.

Without a scheduler, two processes of this machine take its place. They run gnnscale/stages/rank_report.py.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gnnscale.contract import files
from gnnscale.contract.errors import BadFile, UserError
from gnnscale.machine import directory_check
from gnnscale.schema import Record
from workflow.config.site import Queue, SiteConfig
from workflow.config.walltime import to_seconds
from workflow.jobs import launch
from workflow.jobs.requests import Request
from workflow.run_directory.attempt import ExitRecord, read_exit_record, read_last_output
from workflow.scheduler.interface import JobStatus, SchedulerUnreachable
from workflow.scheduler.registry import SCHEDULERS

# For ranks to connect: NCCL's first connection on a machine of a thousand nodes takes tens of seconds.
CONNECT_SECONDS = 120.0
TRIAL_SECONDS = 900  # of walltime, besides the time that the scheduler's early signal takes
POLL_SECONDS = 0.5


class SeenDevice(Record):
    name: str
    memory: int


class RankReport(Record):
    """The content of ranks/HOST-PID.json, written by gnnscale/stages/rank_report.py; steps not reached leave fields empty."""

    step: str
    token: str = ""
    host: str
    arch: str
    rank: int
    local_rank: int
    size: int
    launcher: str
    python: str
    began: float
    fault: str = ""
    clock_lead: float = 0.0
    cores: int = 0
    memory: int = 0  # bytes that it may use
    temporary: str = ""
    interfaces: dict[str, str] = {}
    modules: tuple[str, ...] = ()
    image: str = ""  # its id
    native: str = ""  # instruction set of the native library; "" if there is none
    native_reason: str = ""
    native_hint: str = ""  # "" if nobody misses it
    packages: dict[str, str] = {}
    accelerator: str = ""
    devices: tuple[SeenDevice, ...] = ()
    backend: str = ""
    met: tuple[str, ...] = ()
    device: str = ""
    sum_is_right: bool | None = None
    seconds: float | None = None
    mebibytes: int = 0
    error: str = ""


class TrialResult(NamedTuple):
    """Everything that is known about a trial job after its end."""

    queue: str  # "" where there is no scheduler
    job: str
    nodes: int
    ranks: int  # requested
    folder: Path
    token: str
    status: JobStatus | None  # how the job ended; None: no scheduler, or it did not end in time
    waited: float  # seconds
    started: bool  # it was seen running
    reports: tuple[RankReport, ...]
    exit: ExitRecord | None
    output_tail: tuple[str, ...]
    clock_lead: float = 0.0  # seconds by which this machine's clock is ahead of the file server's
    was_listed: bool = True  # by the scheduler, at least once
    fault: str = ""  # of the submission
    hint: str = ""


# ------------------------------------------------------------------------------------------------------- which job
def suitable_queues(site: SiteConfig) -> list[str]:
    """Return the queues that accept the job, the one where it is likely to wait least first: few nodes, short jobs."""
    notice = site.batch_scheduler.signal_seconds  # a job that is signalled at once is of no use
    usable = {
        n: queue for n, queue in site.queues.items() if queue.node is None and to_seconds(queue.max_walltime) > notice
    }
    return sorted(
        usable,
        key=lambda name: (usable[name].nodes[0], usable[name].preemptible, to_seconds(usable[name].max_walltime)),
    )


def trial_request(site: SiteConfig, name: str) -> Request:
    """Return the request for the job: two nodes where queue and trainings allow it, to test the network between nodes."""
    queue: Queue = site.queues[name]
    two = queue.nodes[1] >= 2 and (site.train.nodes[1] >= 2 or site.ranks_per_node == 1)
    nodes = max(queue.nodes[0], 2 if two and site.launch.command != "none" else 1)
    walltime_seconds = min(to_seconds(queue.max_walltime), TRIAL_SECONDS + site.batch_scheduler.signal_seconds)
    return Request(
        ("doctor",),
        name,
        nodes,
        nodes,
        site.ranks_per_node,
        site.launch.threads_per_rank,
        walltime_seconds,
        1,
        float(TRIAL_SECONDS),
    )


def make_trial_folder(root: Path, threads: int) -> tuple[Path, str]:
    """Make the job's directory, as deep in the run directory as a stage's; return it and a token that identifies it."""
    token = secrets.token_hex(8)
    folder = root / "doctor" / token[:8]
    (folder / "ranks").mkdir(parents=True)
    files.write(
        folder / "request.json", json.dumps({"token": token, "patience": CONNECT_SECONDS, "threads": threads}) + "\n"
    )
    return folder, token


# ------------------------------------------------------------------------------------------------------ in a queue
def run_in_queue(site: SiteConfig, name: str, root: Path, wait: float, say: Callable[[str], None]) -> TrialResult:
    """Submit the job and follow it to its end; cancel it if it has not started after `wait` seconds, or on any error."""
    from workflow.jobs import parsl_provider  # Parsl takes half a second to import

    request, (folder, token) = trial_request(site, name), make_trial_folder(root, site.launch.threads_per_rank)
    attempt = folder / "attempts" / "1"
    attempt.mkdir(parents=True)
    stage_attempt = launch.StageAttempt("doctor", "rank_report", folder, 1)
    job = parsl_provider.JobScript(
        request, f"gnnscale-doctor-{token[:8]}", attempt, launch.render_job_body(request, [stage_attempt], site)
    )
    empty = TrialResult(name, "", request.nodes, request.ranks, folder, token, None, 0.0, False, (), None, ())
    with deferred_interrupt() as interrupted:
        try:
            empty = empty._replace(job=parsl_provider.submit(job, site))
        except parsl_provider.JobRefused as error:
            return empty._replace(fault=str(error), hint=error.hint)
        except (parsl_provider.JobLimitReached, SchedulerUnreachable) as error:
            return empty._replace(fault=str(error), hint="try again later, or skip the job: --no-job")
        try:
            ended = wait_for_end(empty, request, site, wait, say, interrupted)
        except BaseException as error:
            if fault := try_to_cancel(site, empty.job):
                raise UserError(fault, cancel_by_hand(site, empty.job)) from error
            raise
    if not ended.started:
        return ended
    say(f"job {ended.job} has ended; waiting for its files")
    deadline = time.monotonic() + site.batch_scheduler.late_seconds
    while not (attempt / "exit.json").exists() and time.monotonic() < deadline:  # files may appear late here
        time.sleep(POLL_SECONDS)
    return ended._replace(**read_results(folder, attempt))


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Record Ctrl-C instead of raising it: during a submission it would leave a job whose id is unknown."""
    interrupted = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for_end(
    trial: TrialResult,
    request: Request,
    site: SiteConfig,
    wait: float,
    say: Callable[[str], None],
    interrupted: threading.Event,
) -> TrialResult:
    """Poll the scheduler until the job has ended, or until waiting is pointless."""
    scheduler, timeout = SCHEDULERS[site.batch_scheduler.kind], site.batch_scheduler.command_timeout
    began, running, seen, id = time.monotonic(), False, None, trial.job
    was_listed, exit_file = False, trial.folder / "attempts" / "1" / "exit.json"
    while True:
        elapsed = time.monotonic() - began
        with contextlib.suppress(SchedulerUnreachable):
            snapshot = scheduler.find_by_id([id], timeout)
            seen, was_listed = snapshot.jobs.get(id, seen), was_listed or id in snapshot.jobs
            if id in snapshot.unknown:  # an answer that merely lacks it proves nothing
                seen = (seen or JobStatus(id, "", ""))._replace(state="COMPLETED")
        running = running or (seen is not None and seen.state == "RUNNING")
        say(
            f"job {id} in {trial.queue}: {(seen.state if seen else 'submitted').lower()}"
            + (f" ({seen.reason})" if seen and seen.reason not in ("", "None") else "")
            + f", {elapsed:.0f} s"
        )
        if (seen is not None and not seen.is_active) or (seen is None and exit_file.exists()):
            break
        if (seen is not None and seen.is_hopeless) or (not running and elapsed > wait):
            fault = try_to_cancel(site, id)
            return trial._replace(status=seen, waited=elapsed, fault=fault, hint=cancel_by_hand(site, id))
        # It must have ended by then, even if the scheduler does not report it.
        if elapsed > wait + request.seconds + site.batch_scheduler.late_seconds:
            break
        if interrupted.wait(min(5.0, max(POLL_SECONDS, site.batch_scheduler.poll_seconds))):
            raise KeyboardInterrupt
    return trial._replace(status=seen, waited=time.monotonic() - began, started=True, was_listed=was_listed)


def try_to_cancel(site: SiteConfig, id: str) -> str:
    """Cancel the job; return why it may still be in the queue, or ""."""
    try:
        SCHEDULERS[site.batch_scheduler.kind].cancel([id], site.batch_scheduler.command_timeout)
    except SchedulerUnreachable as error:
        return f"job {id} may still be in the queue: {error}"
    return ""


def cancel_by_hand(site: SiteConfig, id: str) -> str:
    """Return the command that ends the job."""
    return f"end it: {SCHEDULERS[site.batch_scheduler.kind].cancel_command} {id}"


def read_results(folder: Path, attempt: Path) -> dict[str, Any]:
    """Return the fields of TrialResult that the job's directory holds."""
    reports = []
    for path in sorted((folder / "ranks").glob("[!.]*.json")):
        with contextlib.suppress(BadFile):
            reports.append(files.read_model(path, RankReport))
    return {
        "reports": tuple(sorted(reports, key=lambda rank: (rank.rank, rank.host))),
        "exit": read_exit_record(attempt),
        "output_tail": read_last_output(attempt),
        "clock_lead": directory_check.measure_clock_lead(folder),
    }


# ---------------------------------------------------------------------------------------------------- on this machine
def run_here(site: SiteConfig, root: Path, say: Callable[[str], None], ranks: int = 2) -> TrialResult:
    """Run the ranks on this machine with the interpreter and the environment of a stage."""
    folder, token = make_trial_folder(root, site.launch.threads_per_rank)
    attempt = folder / "attempts" / "1"
    attempt.mkdir(parents=True)
    script = folder / "command.sh"
    files.write(
        script, launch.render_command(launch.StageAttempt("doctor", "rank_report", folder, 1), site, ranks=ranks)
    )
    began = time.monotonic()
    say(f"{ranks} ranks on this machine")
    with open(attempt / "stdout", "wb") as out, open(attempt / "stderr", "wb") as err:
        process = subprocess.Popen(["sh", script], cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            process.wait(timeout=2 * CONNECT_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()  # which ends all ranks
            process.wait()
    return TrialResult(
        "", "", 1, ranks, folder, token, None, time.monotonic() - began, True, **read_results(folder, attempt)
    )


def remove_folder(trial: TrialResult) -> None:
    """Remove the job's directory."""
    shutil.rmtree(trial.folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # another doctor uses it
        trial.folder.parent.rmdir()
