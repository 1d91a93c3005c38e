"""Output of `run --detach` and `stop`: how a driver outlives this session, where to look at it, and how it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from gnnscale.contract.command_name import command_name
from gnnscale.contract.errors import UserError
from gnnscale.contract.places import ROOT
from workflow.cli.invocation import Invocation
from workflow.config.site import SiteConfig
from workflow.detach import start as starting
from workflow.run_directory import lease

PROGRAM = [sys.executable, "-u", str(ROOT / "workflow" / "run.py")]  # unbuffered, as the output is read while it grows
SECONDS_TO_STOP = 150.0  # a file of another host may be seen a minute late


def start(invocation: Invocation) -> None:
    """Start the driver of this command detached, and say where it is."""
    words, root = invocation.words("run"), invocation.root
    # This host was checked; that on which cron or a job runs may have a name of another form.
    elsewhere = starting.choose_way(invocation.site) in ("scrontab", "job")
    words += ["--set", "host=null"] if elsewhere and invocation.site.host else []
    commands = starting.Commands(
        [*PROGRAM, *words], [*PROGRAM, *words, "--detach"], [*PROGRAM, "stop", "--root", str(root)]
    )
    print("\n".join(starting.start_driver(root, invocation.site, commands)))
    print(f"progress  {command_name()} status --watch --root {root}")
    print(f"stop      {command_name()} stop --root {root}")


def stop(root: Path, load_site: Callable[[], SiteConfig]) -> None:
    """Ask the driver to stop, wait until it has, and remove what would start it again."""
    removed = starting.end_restarts(root, load_site)
    if removed:
        print(removed)
    driver = lease.live_driver(root)
    if driver is None:
        print(f"{root}: no driver is running")
        return
    lease.ask_to_stop(root, driver)
    deadline = time.monotonic() + SECONDS_TO_STOP
    while lease.live_driver(root) == driver:
        if time.monotonic() > deadline:
            raise UserError(
                f"{root}: the driver (pid {driver['pid']} on {driver['host']}) has not stopped within {SECONDS_TO_STOP:.0f} s",
                f"on {driver['host']}: kill {driver['pid']}",
            )
        time.sleep(0.1)
    print(f"stopped the driver (pid {driver['pid']} on {driver['host']}); jobs in a queue go on, `cancel` ends them")
