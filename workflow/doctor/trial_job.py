"""A real small job of a site, started as a training is, in which each rank tells what it sees; and what came of it.

Where there is no scheduler: two processes of this machine. gnnscale/stages/rank_report.py is what they run.
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
from typing import NamedTuple

from gnnscale.contract import files
from gnnscale.contract.errors import Problem
from gnnscale.machine import directory_check
from gnnscale.schema import Spec
from workflow.config.site import Queue, SiteConfig
from workflow.config.walltime import seconds
from workflow.jobs import launch
from workflow.jobs.outcome import Exit
from workflow.jobs.requests import Request
from workflow.run_directory.attempt import last_lines
from workflow.scheduler import query
from workflow.scheduler.query import Seen

PATIENCE = 120.0  # s for ranks to find each other; NCCL's first meeting on a thousand-node machine takes tens of them
LENGTH = 900  # s of walltime, and what the scheduler's early signal takes of it
NAP = 0.5  # s


class Device(Spec):
    name: str
    memory: int


class Rank(Spec):
    """ranks/HOST-PID.json, as gnnscale/stages/rank_report.py leaves it. What it did not come to is empty."""

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
    memory: int = 0  # bytes that it may have
    temporary: str = ""
    interfaces: dict[str, str] = {}
    modules: tuple[str, ...] = ()
    image: str = ""  # its id
    packages: dict[str, str] = {}
    accelerator: str = ""
    devices: tuple[Device, ...] = ()
    backend: str = ""
    met: tuple[str, ...] = ()
    device: str = ""
    sum_is_right: bool | None = None
    seconds: float | None = None
    mebibytes: int = 0
    error: str = ""


class Trial(NamedTuple):
    """All that is known afterwards."""

    queue: str  # "" where there is no scheduler
    job: str
    nodes: int
    ranks: int  # that were asked for
    folder: Path
    token: str
    seen: Seen | None  # how the job ended; None: no scheduler, or it did not end in time
    waited: float  # seconds
    began: bool  # whether it was ever seen to run
    told: tuple[Rank, ...]
    exit: Exit | None
    printed: tuple[str, ...]  # its last words
    clock_lead: float = 0.0  # seconds by which this machine's clock is ahead of the file server's
    fault: str = ""  # of the submission
    hint: str = ""


# ------------------------------------------------------------------------------------------------------- which job
def suited(site: SiteConfig) -> list[str]:
    """Queues that may take it, the one in which it waits least first: few nodes, short jobs."""
    notice = site.scheduler.signal_seconds  # a job of which nothing is left before it is told to stop is of no use
    own = {n: queue for n, queue in site.queues.items() if queue.node is None and seconds(queue.max_walltime) > notice}
    return sorted(own, key=lambda name: (own[name].nodes[0], own[name].preemptible, seconds(own[name].max_walltime)))


def request(site: SiteConfig, name: str) -> Request:
    """Two nodes where a queue gives them and trainings may have them, so that the network between nodes is tried too."""
    queue: Queue = site.queues[name]
    two = queue.nodes[1] >= 2 and (site.train.nodes[1] >= 2 or site.ranks_per_node == 1)
    nodes = max(queue.nodes[0], 2 if two and site.launch.command != "none" else 1)
    asked = min(seconds(queue.max_walltime), LENGTH + site.scheduler.signal_seconds)
    return Request(
        ("doctor",), name, nodes, nodes, site.ranks_per_node, site.launch.threads_per_rank, asked, 1, float(LENGTH)
    )


def prepare(root: Path, threads: int) -> tuple[Path, str]:
    """A directory of its own, as deep in the run directory as a stage's; and what proves that it is this one that is seen."""
    token = secrets.token_hex(8)
    folder = root / "doctor" / token[:8]
    (folder / "ranks").mkdir(parents=True)
    files.write(folder / "asked.json", json.dumps({"token": token, "patience": PATIENCE, "threads": threads}) + "\n")
    return folder, token


# ------------------------------------------------------------------------------------------------------ in a queue
def in_queue(site: SiteConfig, name: str, root: Path, wait: float, say: Callable[[str], None]) -> Trial:
    """Submitted, and followed to its end; cancelled if it has not begun after `wait` seconds, or if anything goes wrong."""
    from workflow.jobs import parsl_provider  # Parsl takes half a second to import

    asked, (folder, token) = request(site, name), prepare(root, site.launch.threads_per_rank)
    attempts = folder / "attempts" / "1"
    attempts.mkdir(parents=True)
    attempt = launch.Attempt("doctor", "rank_report", folder, 1)
    job = parsl_provider.Job(asked, f"gnnscale-doctor-{token[:8]}", attempts, launch.batch(asked, [attempt], site))
    empty = Trial(name, "", asked.nodes, asked.ranks, folder, token, None, 0.0, False, (), None, ())
    with noted() as interrupted:
        try:
            empty = empty._replace(job=parsl_provider.submit(job, site))
        except parsl_provider.Refused as error:
            return empty._replace(fault=str(error), hint=error.hint)
        except (parsl_provider.Limit, query.Unreachable) as error:
            return empty._replace(fault=str(error), hint="try again later, or leave the job out: --no-job")
        try:
            ended = followed(empty, asked, site, wait, say, interrupted)
        except BaseException as error:
            if fault := cancelled(site, empty.job):
                raise Problem(fault, by_hand(site, empty.job)) from error
            raise
    if not ended.began:
        return ended
    say(f"job {ended.job} has ended; its files")
    late = time.monotonic() + site.scheduler.late_seconds
    while not (attempts / "exit.json").exists() and time.monotonic() < late:  # files may be seen late here
        time.sleep(NAP)
    return ended._replace(**left(folder, attempts))


@contextlib.contextmanager
def noted() -> Iterator[threading.Event]:
    """Ctrl-C is noted, not raised: in the midst of a submission it would leave a job that nobody knows."""
    asked = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def followed(
    trial: Trial,
    asked: Request,
    site: SiteConfig,
    wait: float,
    say: Callable[[str], None],
    interrupted: threading.Event,
) -> Trial:
    """Until the job is over, or there is no sense in waiting."""
    asked_of, timeout = query.KINDS[site.scheduler.kind], site.scheduler.command_timeout
    began, running, seen, id = time.monotonic(), False, None, trial.job
    while True:
        elapsed = time.monotonic() - began
        with contextlib.suppress(query.Unreachable):
            found = asked_of.look([id], timeout).jobs.get(id)
            seen = found or (seen._replace(state="COMPLETED") if seen else None)  # forgotten already
        running = running or (seen is not None and seen.state == "RUNNING")
        say(
            f"job {id} in {trial.queue}: {(seen.state if seen else 'submitted').lower()}"
            + (f" ({seen.reason})" if seen and seen.reason not in ("", "None") else "")
            + f", {elapsed:.0f} s"
        )
        if seen is not None and not seen.active:
            break
        if (seen is not None and seen.hopeless) or (not running and elapsed > wait):
            fault = cancelled(site, id)
            return trial._replace(seen=seen, waited=elapsed, fault=fault, hint=by_hand(site, id))
        if elapsed > wait + asked.seconds + site.scheduler.late_seconds:  # and it knows nothing of its end
            break
        if interrupted.wait(min(5.0, max(NAP, site.scheduler.poll_seconds))):
            raise KeyboardInterrupt
    return trial._replace(seen=seen, waited=time.monotonic() - began, began=True)


def cancelled(site: SiteConfig, id: str) -> str:
    """Ends a job; why it may not be at its end, or ""."""
    try:
        query.KINDS[site.scheduler.kind].cancel([id], site.scheduler.command_timeout)
    except query.Unreachable as error:
        return f"job {id} may still be in the queue: {error}"
    return ""


def by_hand(site: SiteConfig, id: str) -> str:
    return f"end it: {'scancel' if site.scheduler.kind == 'slurm' else 'qdel'} {id}"


def left(folder: Path, attempt: Path) -> dict:
    """What the job left in its directory."""
    told = []
    for path in sorted((folder / "ranks").glob("[!.]*.json")):
        with contextlib.suppress(files.BadFile):
            told.append(files.read_model(path, Rank))
    try:
        exit = files.read_model(attempt / "exit.json", Exit)
    except files.BadFile:
        exit = None
    printed = next(filter(None, (last_lines(attempt / name) for name in ("stderr", "stdout", "job.out"))), ())
    return {
        "told": tuple(sorted(told, key=lambda rank: (rank.rank, rank.host))),
        "exit": exit,
        "printed": tuple(printed),
        "clock_lead": directory_check.clock_lead(folder),
    }


# ---------------------------------------------------------------------------------------------------- on this machine
def here(site: SiteConfig, root: Path, say: Callable[[str], None], ranks: int = 2) -> Trial:
    """As a stage is run here: same interpreter, same environment."""
    folder, token = prepare(root, site.launch.threads_per_rank)
    attempts = folder / "attempts" / "1"
    attempts.mkdir(parents=True)
    script = folder / "command.sh"
    files.write(script, launch.script(launch.Attempt("doctor", "rank_report", folder, 1), site, ranks=ranks))
    began = time.monotonic()
    say(f"{ranks} ranks on this machine")
    with open(attempts / "stdout", "wb") as out, open(attempts / "stderr", "wb") as err:
        process = subprocess.Popen(["sh", script], cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            process.wait(timeout=2 * PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()  # and with it all ranks
            process.wait()
    return Trial("", "", 1, ranks, folder, token, None, time.monotonic() - began, True, **left(folder, attempts))


def remove(trial: Trial) -> None:
    shutil.rmtree(trial.folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # another doctor's
        trial.folder.parent.rmdir()
