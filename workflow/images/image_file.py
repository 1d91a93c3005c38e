"""The image file of a site, the record beside it, and the id by which plans tell images apart.

An image is NAME.sif with a record NAME.json: the content of the image (`id`, written when it was built) and the digest of
the file itself. A file that does not match its record is not used. workflow/images/build_image.py makes both.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from gnnscale.contract import files
from gnnscale.contract.command_name import command_name
from gnnscale.contract.errors import BadFile, UserError
from gnnscale.contract.files import sha256
from gnnscale.contract.places import images_folder, source_files, source_name
from gnnscale.contract.source_code import digest_source
from gnnscale.schema import Record
from workflow.config.site import SiteConfig
from workflow.images import runtimes
from workflow.images.apptainer import inspect_image

ACCELERATORS = {"nvidia": "cuda", "amd": "rocm", "intel": "xpu"}


class ImageContent(Record):
    """Content of image.json, which containers/identity.py writes into the image at the end of its build."""

    id: str
    accelerator: str
    arch: str
    python: str
    version: str
    commit: str | None
    lock: str
    recipe: str
    base: str
    code: dict[str, str]
    system: tuple[str, ...]
    packages: tuple[str, ...]


class ImageRecord(Record):
    """Record beside the file of an image; everything in it can be read again from the image."""

    sha256: str
    size: int
    mtime_ns: int
    content: ImageContent


def accelerator(site: SiteConfig) -> str:
    return ACCELERATORS[site.node.gpus.vendor] if site.node.gpus else "cpu"


def architecture(site: SiteConfig) -> str:
    return site.arch or platform.machine()


def build_command() -> str:
    return f"{command_name()} image build"


def locate_image(site: SiteConfig) -> Path:
    """Return the image in which a site's stages run; by default a link to the one that was built last."""
    if site.container.image:
        return Path(os.path.expandvars(site.container.image)).expanduser()
    return images_folder() / f"{accelerator(site)}-{architecture(site)}.sif"


def record_file(file: Path) -> Path:
    return file.resolve().with_suffix(".json")


def has_image_file(site: SiteConfig) -> bool:
    return site.container.runtime in runtimes.RUNTIMES_WITH_IMAGE_FILES


def code_digests() -> dict[str, str]:
    return {source_name(path): digest_source(path) for path in source_files()}


def with_image(site: SiteConfig, data_paths: list[str]) -> SiteConfig:
    """Return the site with the path and id of its image, for plans; `find_faults` checks whether stages can run in it."""
    container = site.container
    if container.runtime == "none":
        raise UserError(
            "this site names no container runtime",
            "set container.runtime in the site's file, or with --set container.runtime=NAME",
        )
    changes: dict[str, Any] = {"data": tuple(dict.fromkeys((*container.data, *data_paths)))}
    if has_image_file(site):
        file = locate_image(site)
        record = read_record(file)
        changes |= {"image": str(file.resolve()), "digest": record.content.id}
        if container.checkout is None:
            changes["checkout"] = record.content.code != code_digests()
        elif not container.checkout and record.content.code != code_digests():
            raise UserError(
                f"{file}: holds other code than this checkout, whose digests are in the keys of stages",
                f"`{build_command()}` builds one with this code; container.checkout: true binds this code over the image's",
            )
    elif not container.image or not container.digest:
        raise UserError(
            f"{container.runtime} needs container.image (its name for the image) and container.digest (the id)",
            "the id is in /opt/gnnscale/image.json of the image, and `image inspect` shows it",
        )
    else:
        changes["checkout"] = True if container.checkout is None else container.checkout
    return site.model_copy(update={"container": container.model_copy(update=changes)})


def read_record(file: Path, deep: bool = False) -> ImageRecord:
    """Return the record of an image if the file matches it; hash the file if its time has changed, or if `deep`."""
    raise_if_absent(file)
    try:
        record = files.read_model(record_file(file), ImageRecord)
    except BadFile as error:
        raise UserError(
            f"{error}: the content of the image is unknown",
            f"to read and record it: {command_name()} image verify",
        ) from None
    state = file.stat()
    if state.st_size != record.size:
        raise UserError(
            f"{file}: {state.st_size:,} bytes, {record.size:,} expected: cut off, or another file",
            f"copy it again, or remove it and build it again: {build_command()}",
        )
    if (deep or state.st_mtime_ns != record.mtime_ns) and sha256(file) != record.sha256:
        raise UserError(
            f"{file}: not the file that {record_file(file).name} describes (same size, other content)",
            f"copy it again, or remove it and build it again: {build_command()}",
        )
    return record


def require_image(site: SiteConfig) -> Path:
    file = locate_image(site)
    raise_if_absent(file)
    return file


def raise_if_absent(file: Path) -> None:
    if not file.exists():
        raise UserError(f"{file}: no such image", f"build one: {build_command()}")


def read_content(file: Path) -> ImageContent:
    return ImageContent.model_validate(inspect_image(file)["content"])


def write_record(file: Path, target: Path) -> None:
    """Write the record of a file that will be called `target`: before it has that name, so that no image lacks one."""
    content, state = read_content(file), file.stat()
    record = ImageRecord(sha256=sha256(file), size=state.st_size, mtime_ns=state.st_mtime_ns, content=content)
    files.write_model(target.with_suffix(".json"), record)
