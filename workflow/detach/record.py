"""The record of a detached driver in its run directory: by which way it was started, under which name, and its files."""

from __future__ import annotations

from pathlib import Path

from gnnscale.contract import errors, files
from gnnscale.schema import Record
from workflow.config.site import DriverWay

LOG_NAME = "driver.log"  # in the run directory: everything that detached drivers print
SCRIPT_NAME = "driver.sh"


class DetachedDriver(Record):
    """Content of driver.json: the driver that `run --detach` started last."""

    way: DriverWay
    name: str  # of the session, the unit, the entry or the job
    host: str  # on which it was typed
    log: str


def driver_name(root: Path) -> str:
    """Name the driver of a run directory: another in a copy, and short enough for the name of any job."""
    return f"driver-{files.digest([str(root)])[:8]}"


def write_record(root: Path, driver: DetachedDriver) -> None:
    files.write_model(root / "driver.json", driver)


def read_record(root: Path) -> DetachedDriver | None:
    """Read the record; None where no driver was detached."""
    try:
        return files.read_model(root / "driver.json", DetachedDriver)
    except errors.BadFile:
        return None
