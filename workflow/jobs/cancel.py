"""Ends jobs of a run directory, from any terminal, whether a driver is at work or not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from gnnscale.contract.errors import Problem
from workflow.config.site import SiteConfig
from workflow.run_directory import journal
from workflow.run_directory.journal import Known
from workflow.scheduler import query


def cancel(root: Path, site: SiteConfig, site_name: str, wanted: Callable[[Known], bool]) -> list[str]:
    """What was done, a line each. A job is ended only if it bears the name that we gave it."""
    jobs = [job for job in journal.unfinished(root) if job.site == site_name and wanted(job)]
    if not jobs:
        return []
    asked, seconds = query.KINDS[site.scheduler.kind], site.scheduler.command_timeout
    try:
        seen = {job.name: job for job in asked.named({job.name for job in jobs}, seconds)}
        active = {job.name: seen[job.name].id for job in jobs if job.name in seen and seen[job.name].active}
        for job in jobs:  # first: a driver that sees the job end must know by whom
            for folder, attempt in job.stages.values():
                made = root / folder / "attempts" / str(attempt)
                made.mkdir(parents=True, exist_ok=True)
                (made / journal.WITHDRAWN).write_text(f"{time.time():.0f}\n")
        if active:
            asked.cancel(list(active.values()), seconds)
    except query.Unreachable as error:
        raise Problem(f"nothing was cancelled for certain: {error}", "type the same command again") from None
    return [
        f"cancelled  job {active[job.name]}  {', '.join(job.stages)}"
        if job.name in active
        else f"was not in the queue any more  {', '.join(job.stages)}"
        for job in jobs
    ]
