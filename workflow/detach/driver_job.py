"""A batch job of one small request that runs a driver, and that submits itself again before its walltime."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from gnnscale.contract.errors import UserError
from gnnscale.contract.exit_codes import STOPPED, TERMINATED
from workflow.config.site import SiteConfig
from workflow.config.walltime import to_seconds
from workflow.jobs import parsl_provider
from workflow.jobs.requests import Request
from workflow.scheduler.interface import JobStatus, SchedulerUnreachable
from workflow.scheduler.registry import SCHEDULERS

FOLDER = "driver"  # of the script and of what the scheduler prints, in the run directory


def driver_request(site: SiteConfig) -> Request:
    """Return the request for the job: the fewest nodes of the queue, for as long as the site says."""
    assert site.driver.queue is not None, "a rule of sites"
    least = site.queues[site.driver.queue].nodes[0]
    return Request(("driver",), site.driver.queue, least, least, 1, 1, to_seconds(site.driver.walltime), 1, 0.0)


def render_ending(again: Sequence[str]) -> list[str]:
    """Return the end of the driver's script: a driver that its job has stopped is submitted again, any other is not.

    On a slow node the signal to stop may come while the driver is not ready for it. A job that is cancelled ends the script.
    """
    return ["case $? in", f"    {STOPPED} | {TERMINATED}) exec {shlex.join(again)} ;;", "esac"]


def limit_command(site: SiteConfig) -> list[str]:
    """Return what stops the driver while its job has time left; not every scheduler tells a job of its end."""
    seconds = to_seconds(site.driver.walltime) - site.batch_scheduler.signal_seconds
    return ["timeout", "--preserve-status", "--signal=TERM", str(seconds)]


def submit_job(site: SiteConfig, root: Path, name: str, script: Path, log: Path) -> str:
    """Submit the job and return its id."""
    if waiting := [job.id for job in find_jobs(site, name) if job.state == "PENDING"]:
        raise UserError(f"job {waiting[0]} ({name}) waits in the queue, to run this driver", "`stop` cancels it")
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    body = [
        "trap '' USR1  # by which jobs of trainings are told of their end",
        f"/bin/sh {shlex.quote(str(script))} >>{shlex.quote(str(log))} 2>&1",
    ]
    try:
        return parsl_provider.submit(
            parsl_provider.JobScript(driver_request(site), name, folder, "\n".join(body)), site
        )
    except parsl_provider.JobRefused as error:
        raise UserError(str(error), error.hint, "or choose another way: --set driver.way=tmux") from None
    except (parsl_provider.JobLimitReached, SchedulerUnreachable) as error:
        raise UserError(str(error), "type the same command again later") from None


def cancel_job(site: SiteConfig, name: str) -> str:
    """Cancel the job, if it is in the queue, and return its id."""
    scheduler, seconds = SCHEDULERS[site.batch_scheduler.kind], site.batch_scheduler.command_timeout
    ids = [job.id for job in find_jobs(site, name) if job.is_active]
    try:
        if ids:
            scheduler.cancel(ids, seconds)
    except SchedulerUnreachable as error:
        raise UserError(
            f"the job of the driver was not cancelled for certain: {error}", "type the same command again"
        ) from None
    return ", ".join(ids)


def find_jobs(site: SiteConfig, name: str) -> list[JobStatus]:
    """Return the jobs of this driver; raise if the scheduler does not answer."""
    scheduler, seconds = SCHEDULERS[site.batch_scheduler.kind], site.batch_scheduler.command_timeout
    try:
        return scheduler.find_by_name({name}, seconds)
    except SchedulerUnreachable as error:
        raise UserError(f"the job of the driver is not known: {error}", "type the same command again") from None
