"""The command `image push`: copies an image and its record to a directory or a registry."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.errors import UserError
from workflow.config.site import SiteConfig
from workflow.images.command_log import CommandLog, Notify
from workflow.images.image_file import read_record, require_image


def push(site: SiteConfig, to: str, notify: Notify) -> None:
    """Copy the image of a site to a directory that another site sees, or to a registry (a URL)."""
    file = require_image(site).resolve()
    record = read_record(file, deep=True)
    if "://" in to:
        log = CommandLog(file.parent / "build.log", notify)
        log.run(["apptainer", "push", str(file), to], f"{file.name} to {to}")
        return
    target = Path(to).expanduser() / file.name
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such directory", "make it, or name a registry: oras://HOST/NAME:TAG")
    part = target.with_name(target.name + ".part")
    shutil.copyfile(file, part)
    if files.sha256(part) != record.sha256:
        raise UserError(f"{part}: differs from {file} after copying", "try again; the disk may be failing")
    mtime_ns = part.stat().st_mtime_ns
    files.write_model(target.with_suffix(".json"), record.model_copy(update={"mtime_ns": mtime_ns}))
    os.replace(part, target)
    notify(f"{target}: {record.size / 1e6:.0f} MB; use it there: --container --set container.image={target}")
