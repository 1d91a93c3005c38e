"""What a site's file system removes of a run directory because nobody has touched it for long, and when."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from workflow.config.site import SiteConfig

DAY = 86400
MARGIN = 0.2  # of the window: that is when it is said


class Oldest(NamedTuple):
    """The file of the results that will go first."""

    path: Path
    days: float  # since it was last read or written


def scratch(site: SiteConfig) -> Path | None:
    """Where run directories belong; None where the file says nothing, or names a variable that is not set here."""
    said = os.path.expandvars(site.filesystems.scratch or "$")
    return None if "$" in said else Path(said)


def applies(root: Path, site: SiteConfig) -> bool:
    """Whether the run directory lies where files are removed."""
    above = scratch(site)
    return site.filesystems.purge_days is not None and (above is None or root.is_relative_to(above.resolve()))


def oldest(paths: Iterable[Path], now: float) -> Oldest | None:
    touched = []
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            continue
        touched.append((max(found.st_atime, found.st_mtime), path))
    if not touched:
        return None
    when, path = min(touched)
    return Oldest(path, max(0.0, now - when) / DAY)


def warnings(paths: Iterable[Path], root: Path, site: SiteConfig, seconds_left: float = 0.0) -> list[str]:
    """What to say of it, if anything: results that go soon, and a study that lasts longer than its first results."""
    if not applies(root, site):
        return []
    window, said = site.filesystems.purge_days, []
    found = oldest(paths, time.time())
    if found is not None and found.days > (1 - MARGIN) * window:
        left = window - found.days
        when = f"in {left:.0f} days" if left >= 1 else "today or any time now"
        said.append(
            f"{found.path.relative_to(root)} has not been touched for {found.days:.0f} days; files here are removed "
            f"after {window}: {when}. Copy the run directory to where they stay; it can be continued there"
        )
    if seconds_left / DAY > (1 - MARGIN) * window:
        said.append(
            f"the rest is expected to take {seconds_left / DAY:.0f} days, and files that are untouched for {window} "
            "days are removed here: copy results to where they stay as they come"
        )
    return said
