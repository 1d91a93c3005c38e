"""The start of a detached driver by its site's way, and the end of what would start it again."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract.command_name import COMMAND_VARIABLE, command_name
from gnnscale.contract.errors import UserError
from workflow.config.site import DriverWay, SiteConfig
from workflow.detach import driver_script, scrontab, sessions
from workflow.detach.record import LOG_NAME, DetachedDriver, driver_name, read_record, write_record
from workflow.run_directory import lease

START_SECONDS = 60.0  # for imports from a slow file system
TAIL_LINES = 8


class Commands(NamedTuple):
    """Words of the command line for one run: they start its driver, start it detached once more, and stop it."""

    run: list[str]
    again: list[str]
    stop: list[str]


def choose_way(site: SiteConfig) -> DriverWay:
    return site.driver.way or sessions.default_way()


def start_driver(root: Path, site: SiteConfig, commands: Commands) -> list[str]:
    """Start the driver, wait until it works where that is at once, and return what its user must know."""
    way, name, log = choose_way(site), driver_name(root), root / LOG_NAME
    log.touch()
    earlier = read_record(root)
    if earlier is not None and earlier.way != way:
        end_restarts(root, lambda: site)
    write_record(root, DetachedDriver(way=way, name=name, host=platform.node(), log=str(log)))
    if way == "scrontab":
        return [*start_by_scrontab(root, site, name, log, commands), f"output    {log}"]
    if way == "job":
        return [start_by_job(root, site, name, log, commands), f"output    {log}"]
    script = driver_script.write_script(root, render(commands.run, []))
    session, printed = sessions.session_for(way, name, script, log), log.stat().st_size
    sessions.start_session(way, session)
    wait_for_driver(root, log, printed)
    return [f"detached  by {way}; {session.end}", f"output    {log}", f"look      {session.look}"]


def render(command: list[str], ending: list[str]) -> str:
    environment = os.environ | {COMMAND_VARIABLE: command_name()}
    return driver_script.render_script(command, Path.cwd(), environment, ending)


def start_by_scrontab(root: Path, site: SiteConfig, name: str, log: Path, commands: Commands) -> list[str]:
    script = driver_script.write_script(root, render(commands.run, scrontab.render_ending(commands.stop)))
    scrontab.add_entry(name, scrontab.render_entry(name, script, log, entry_options(site)))
    return [
        "detached  by an entry of scrontab: the driver starts within some minutes, and again if it is killed",
        f"look      scrontab -l; squeue --me --name={name}",
    ]


def entry_options(site: SiteConfig) -> list[str]:
    return [*site.driver.options, *([f"-A {site.account}"] if site.account else [])]


def start_by_job(root: Path, site: SiteConfig, name: str, log: Path, commands: Commands) -> str:
    from workflow.detach import driver_job  # with Parsl, which takes half a second to import

    run = [*driver_job.limit_command(site), *commands.run]
    script = driver_script.write_script(root, render(run, driver_job.render_ending(commands.again)))
    id = driver_job.submit_job(site, root, name, script, log)
    return f"detached  as job {id} ({name}), which submits itself again before its walltime, {site.driver.walltime}"


def wait_for_driver(root: Path, log: Path, printed: int) -> None:
    """Wait until a driver holds the run directory; raise with what it printed if none does."""
    deadline = time.monotonic() + START_SECONDS
    while lease.live_driver(root) is None:
        if time.monotonic() > deadline:
            said = log.read_text(errors="replace")[printed:].splitlines()[-TAIL_LINES:] or ["it has printed nothing"]
            raise UserError(f"the driver has not started within {START_SECONDS:.0f} s", *said, f"its output: {log}")
        time.sleep(0.1)


def end_restarts(root: Path, load_site: Callable[[], SiteConfig]) -> str:
    """Remove what would start the driver again, and return what was removed."""
    record = read_record(root)
    if record is None:
        return ""
    if record.way == "scrontab" and scrontab.remove_entry(record.name):
        return "the entry of scrontab was removed"
    if record.way == "job" and lease.live_driver(root) is None:
        from workflow.detach import driver_job  # with Parsl, which takes half a second to import

        if id := driver_job.cancel_job(load_site(), record.name):
            return f"job {id} of the driver was cancelled"
    return ""
