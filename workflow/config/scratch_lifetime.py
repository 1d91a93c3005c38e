"""Warnings before a site's scratch file system deletes files of a run directory that nobody has touched."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from workflow.config.site import SiteConfig
from workflow.config.walltime import SECONDS_PER_DAY

WARNING_SHARE = 0.2  # of purge_days: a warning is given once so little of them is left


class OldestFile(NamedTuple):
    """The result that has been untouched for longest, and so is deleted first."""

    path: Path
    days: float  # since it was last read or written


def scratch_directory(site: SiteConfig) -> Path | None:
    """Return where run directories belong; None where the site names no directory, or one with a variable not set here."""
    expanded = os.path.expandvars(site.filesystems.scratch or "$")
    return None if "$" in expanded else Path(expanded)


def days_until_purge(root: Path, site: SiteConfig) -> int | None:
    """Return after how many days files of this run directory are deleted; None where they are kept."""
    scratch = scratch_directory(site)
    is_on_scratch = scratch is None or root.is_relative_to(scratch.resolve())
    return site.filesystems.purge_days if is_on_scratch else None


def find_oldest(paths: Iterable[Path], now: float) -> OldestFile | None:
    touched = []
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            continue
        touched.append((max(state.st_atime, state.st_mtime), path))
    if not touched:
        return None
    when, path = min(touched)
    return OldestFile(path, max(0.0, now - when) / SECONDS_PER_DAY)


def purge_warnings(paths: Iterable[Path], root: Path, site: SiteConfig, seconds_left: float = 0.0) -> list[str]:
    """List warnings: of results that will be deleted soon, and of a study that lasts longer than its first results."""
    purge_days = days_until_purge(root, site)
    if purge_days is None:
        return []
    warnings = []
    oldest = find_oldest(paths, time.time())
    if oldest is not None and oldest.days > (1 - WARNING_SHARE) * purge_days:
        days_left = purge_days - oldest.days
        when = f"in {days_left:.0f} days" if days_left >= 1 else "today or any time now"
        warnings.append(
            f"{oldest.path.relative_to(root)} has not been touched for {oldest.days:.0f} days, and this file system "
            f"deletes files after {purge_days}: {when}. Copy the run directory to permanent storage; the run can "
            "continue there"
        )
    if seconds_left / SECONDS_PER_DAY > (1 - WARNING_SHARE) * purge_days:
        warnings.append(
            f"the rest is expected to take {seconds_left / SECONDS_PER_DAY:.0f} days, and this file system deletes "
            f"files that are untouched for {purge_days} days: copy results to permanent storage as they arrive"
        )
    return warnings
