"""The image of a site, its record, and the id by which plans tell images apart.

For Apptainer and Singularity an image is NAME.sif with a record NAME.json: the content of the image (`id`, written when it
was built) and the digest of the file itself. A file that does not match its record is not used. Other runtimes have a store
of their own; the record says by which name and digest the image is there. `image build` and `image pull` make both.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from gnnscale.contract import files
from gnnscale.contract.command_name import command_for_site
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


class StoreRecord(Record):
    """Record of an image in the store of a runtime; everything in it can be asked of the store again."""

    reference: str  # the name by which stages run it
    digest: str  # of the manifest; "" if the runtime does not tell
    content: ImageContent


def accelerator(site: SiteConfig) -> str:
    return ACCELERATORS[site.node.gpus.vendor] if site.node.gpus else "cpu"


def architecture(site: SiteConfig) -> str:
    return site.arch or platform.machine()


def image_command(action: str) -> str:
    """Return the command of an action on the image of the site that the user has named, to be typed."""
    return command_for_site(f"image {action}")


def build_command() -> str:
    return image_command("build")


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
    name, id, code = find_file(site) if has_image_file(site) else find_reference(site)
    changes |= {"image": name, "digest": id, "checkout": is_checkout_bound(site, name, code)}
    return site.model_copy(update={"container": container.model_copy(update=changes)})


def find_file(site: SiteConfig) -> tuple[str, str, dict[str, str] | None]:
    """Return path, id and code of the image's file."""
    record = read_record(locate_image(site))
    return str(locate_image(site).resolve()), record.content.id, record.content.code


def find_reference(site: SiteConfig) -> tuple[str, str, dict[str, str] | None]:
    """Return name, id and code of the image in a store: as the user says, or as it is recorded."""
    container, record = site.container, read_store_record(site)
    if container.image and container.digest:
        is_recorded = record is not None and record.content.id == container.digest
        return container.image, container.digest, record.content.code if record and is_recorded else None
    if record is not None and container.image in (None, record.reference) and not container.digest:
        return record.reference, record.content.id, record.content.code
    if container.image:
        raise UserError(
            f"{container.image}: no record says which id this image of {container.runtime} has",
            f"to read and record it: {image_command('verify')}",
        )
    raise UserError(
        f"no image for {accelerator(site)} and {architecture(site)} is recorded here for {container.runtime}",
        f"build one: {build_command()}",
        f"or obtain one: {image_command('pull')} --from docker://HOST/NAME@sha256:DIGEST",
    )


def is_checkout_bound(site: SiteConfig, name: str, code: dict[str, str] | None) -> bool:
    """Decide whether the code of this checkout is bound over the image's, which is unknown for an image without a record."""
    asked, differs = site.container.checkout, code != code_digests()
    if asked is False and code is not None and differs:
        raise UserError(
            f"{name}: holds other code than this checkout, whose digests are in the keys of stages",
            f"`{build_command()}` builds one with this code; container.checkout: true binds this code over the image's",
        )
    return differs if asked is None else asked


def read_record(file: Path, deep: bool = False) -> ImageRecord:
    """Return the record of an image if the file matches it; hash the file if its time has changed, or if `deep`."""
    raise_if_absent(file)
    try:
        record = files.read_model(record_file(file), ImageRecord)
    except BadFile as error:
        raise UserError(
            f"{error}: the content of the image is unknown",
            f"to read and record it: {image_command('verify')}",
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


def read_content(file: Path, program: str) -> ImageContent:
    return ImageContent.model_validate(inspect_image(file, program)["content"])


def write_record(file: Path, target: Path, program: str) -> None:
    """Write the record of a file that will be called `target`: before it has that name, so that no image lacks one."""
    content, state = read_content(file, program), file.stat()
    record = ImageRecord(sha256=sha256(file), size=state.st_size, mtime_ns=state.st_mtime_ns, content=content)
    files.write_model(target.with_suffix(".json"), record)


def store_record_file(site: SiteConfig) -> Path:
    return images_folder() / f"{accelerator(site)}-{architecture(site)}.{site.container.runtime}.json"


def read_store_record(site: SiteConfig) -> StoreRecord | None:
    """Return the record of the image in the store of the site's runtime; None if there is none."""
    path = store_record_file(site)
    try:
        return files.read_model(path, StoreRecord) if path.exists() else None
    except BadFile as error:
        raise UserError(str(error), f"remove it, and record the image again: {image_command('verify')}") from None


def write_store_record(site: SiteConfig, record: StoreRecord) -> None:
    images_folder().mkdir(parents=True, exist_ok=True)
    files.write_model(store_record_file(site), record)
