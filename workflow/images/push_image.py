"""TODO: say what a reader finds here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.errors import UserError
from workflow.config.site import SiteConfig
from workflow.images import image_file
from workflow.images.logged_command import Notify, run_logged


def push(site: SiteConfig, to: str, say: Notify) -> None:
    """The image and its record to a directory that another site sees, or to a registry."""
    file = image_file.require_image(site).resolve()
    record = image_file.read_record(file, deep=True)
    if "://" in to:
        run_logged(["apptainer", "push", str(file), to], file.parent / "build.log", f"{file.name} to {to}", say)
        return
    target = Path(to).expanduser() / file.name
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no directory", "make it, or name a registry: oras://HOST/NAME:TAG")
    part = target.with_name(target.name + ".part")
    shutil.copyfile(file, part)
    if files.sha256(part) != record.sha256:
        raise UserError(f"{part}: not the same as {file} when it was read again", "try again; the disk may be failing")
    state = part.stat()
    files.write_model(target.with_suffix(".json"), record.model_copy(update={"mtime_ns": state.st_mtime_ns}))
    os.replace(part, target)
    say(f"{target}: {record.size / 1e6:.0f} MB; there: --container --set container.image={target}")
