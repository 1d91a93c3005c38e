"""Cancel jobs of a run directory, from any terminal, whether a driver is running or not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from gnnscale.contract.errors import UserError
from workflow.config.site import SiteConfig
from workflow.run_directory import journal
from workflow.run_directory.journal import RecordedJob
from workflow.scheduler.interface import SchedulerUnreachable
from workflow.scheduler.registry import SCHEDULERS


def cancel_jobs(root: Path, site: SiteConfig, site_name: str, is_wanted: Callable[[RecordedJob], bool]) -> list[str]:
    """Cancel the wanted jobs, found by their names; return a line for each."""
    jobs = [job for job in journal.unfinished_jobs(root) if job.site == site_name and is_wanted(job)]
    if not jobs:
        return []
    scheduler, seconds = SCHEDULERS[site.batch_scheduler.kind], site.batch_scheduler.command_timeout
    try:
        in_queue = {job.name: job for job in scheduler.find_by_name({job.name for job in jobs}, seconds)}
        active = {
            job.name: in_queue[job.name].id for job in jobs if job.name in in_queue and in_queue[job.name].is_active
        }
        for job in jobs:
            mark_withdrawn(root, job)  # first: a driver that sees the job end must know why
        if active:
            scheduler.cancel(list(active.values()), seconds)
    except SchedulerUnreachable as error:
        raise UserError(f"nothing was cancelled for certain: {error}", "type the same command again") from None
    return [
        f"cancelled  job {active[job.name]}  {', '.join(job.stages)}"
        if job.name in active
        else f"no longer in the queue  {', '.join(job.stages)}"
        for job in jobs
    ]


def mark_withdrawn(root: Path, job: RecordedJob) -> None:
    for folder, number in job.stages.values():
        attempt = root / folder / "attempts" / str(number)
        attempt.mkdir(parents=True, exist_ok=True)
        (attempt / journal.WITHDRAWN_MARKER).write_text(f"{time.time():.0f}\n")
