"""TODO: say what a reader finds here."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract.errors import UserError
from gnnscale.contract.places import source_file
from workflow.config.site import Container
from workflow.images.environment import IMAGE_HOME

CODE_FOLDERS = ("gnnscale", "datasets")  # folders of a checkout that stages run


KINDS_READING_RAW_DATA = ("convert", "convert_part")  # stages that read raw data


class Mount(NamedTuple):
    source: str
    target: str
    read_only: bool


def stage_mounts(container: Container, kind: str, folder: Path | None, code: Path) -> list[Mount]:
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
    """Of --mount: fields of CSV, so that a path may hold commas, colons and quotes."""
    line = io.StringIO()
    fields = ["type=bind", f"src={mount.source}", f"dst={mount.target}", *(["ro"] if mount.read_only else [])]
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


def volume_option(mount: Mount) -> str:
    """SOURCE:TARGET[:ro], which cannot hold every path."""
    if ":" in mount.source + mount.target or "," in mount.source + mount.target:
        raise UserError(
            f"{mount.source}: this container runtime binds no path with a colon or a comma", "choose another --root"
        )
    return f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else "")
