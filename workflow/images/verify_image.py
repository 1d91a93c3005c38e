"""TODO: say what a reader finds here."""

from __future__ import annotations

from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.errors import UserError
from workflow.config.site import SiteConfig
from workflow.images import apptainer, checks, image_file
from workflow.images.logged_command import Notify
from workflow.images.recipe import read_recipe


def write_record(file: Path, target: Path) -> None:
    """Before the file has its name, so an image that has one has its record too."""
    content = image_file.ImageContent.model_validate(apptainer.inspect_image(file)["content"])
    state = file.stat()
    record = image_file.ImageRecord(
        sha256=files.sha256(file), size=state.st_size, mtime_ns=state.st_mtime_ns, content=content
    )
    files.write_model(target.with_suffix(".json"), record)


def verify(site: SiteConfig, say: Notify) -> None:
    """Every byte, what the image says of itself, and whether it is what this checkout would build now."""
    file = image_file.require_image(site)
    if not image_file.record_file(file).exists():
        write_record(file.resolve(), file.resolve())
        say(f"{image_file.record_file(file)}: written, as there was none")
    checks.raise_if_faulty(image_file.with_image(site, []))
    content = image_file.read_record(file).content
    said = image_file.ImageContent.model_validate(apptainer.inspect_image(file)["content"])
    if said != content:
        raise UserError(
            f"{file}: says of itself what its record does not",
            f"remove {image_file.record_file(file)}, and verify again",
        )
    now = read_recipe(image_file.accelerator(site), content.base)
    say(f"{file}: whole, for {content.arch}, {content.accelerator}, id {content.id[:12]}")
    if content.lock != now.lock:
        say(
            f"its packages are those of another constraints.txt or pyproject.toml; {image_file.build_command()} makes one of these"
        )
    changed = sum(now.code.get(name) != content.code.get(name) for name in now.code.keys() | content.code.keys())
    say(
        f"{changed} files of code differ here; they are bound over the image's"
        if changed
        else "its code is this checkout's"
    )
