"""Directories that a stage sees in a container, and how each runtime writes them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract.errors import UserError
from gnnscale.contract.places import source_file
from workflow.config.container import Container
from workflow.images.environment import IMAGE_HOME

CODE_FOLDERS = ("gnnscale", "datasets")  # of a checkout, with the code of stages
KINDS_READING_RAW_DATA = ("convert", "convert_part")


class Mount(NamedTuple):
    """A path of the host that is visible at `target` in the container."""

    source: str
    target: str
    read_only: bool


def stage_mounts(container: Container, kind: str, folder: Path | None, code: Path) -> list[Mount]:
    """List the run directory, the code of the checkout if it differs, raw data for conversions, and the site's own binds."""
    found = []
    if folder is not None:
        found.append(Mount(str(folder.parent.parent), str(folder.parent.parent), False))
    if container.checkout:
        found += [Mount(str(source_file(name, code)), f"{IMAGE_HOME}/{name}", True) for name in CODE_FOLDERS]
    if kind in KINDS_READING_RAW_DATA:
        found += [Mount(path, path, True) for path in container.data]
    for bind in container.binds:
        source, target, mode = [*bind.split(":"), "", ""][:3]
        found.append(Mount(source, target or source, mode == "ro"))
    return found


def mount_option(mount: Mount) -> str:
    """Return the value of --mount, which is written as CSV: a path may contain commas, colons and quotes."""
    line = io.StringIO()
    fields = ["type=bind", f"src={mount.source}", f"dst={mount.target}", *(["ro"] if mount.read_only else [])]
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


def volume_option(mount: Mount) -> str:
    """Return SOURCE:TARGET[:ro]; raise for paths that cannot be written so."""
    if ":" in mount.source + mount.target or "," in mount.source + mount.target:
        reason = "this container runtime binds no path with a colon or a comma"
        raise UserError(f"{mount.source}: {reason}", "choose another --root")
    return f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else "")
