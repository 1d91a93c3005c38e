"""The commands `image verify` and `image inspect`: is an image as its record says, and what is in it."""

from __future__ import annotations

import shlex
from typing import Any

from gnnscale.contract.errors import UserError
from workflow.config.site import SiteConfig
from workflow.images.apptainer import file_program, inspect_image
from workflow.images.checks import raise_if_faulty
from workflow.images.command_log import Notify
from workflow.images.image_file import (
    ImageContent,
    StoreRecord,
    accelerator,
    architecture,
    build_command,
    find_reference,
    has_image_file,
    image_command,
    read_content,
    read_record,
    read_store_record,
    record_file,
    require_image,
    with_image,
    write_record,
    write_store_record,
)
from workflow.images.image_store import StoredImage, find_stored, read_stored_content
from workflow.images.recipe import read_recipe


def verify(site: SiteConfig, notify: Notify) -> None:
    """Verify the image of a site; raise if it is damaged, and notify the user of differences from this checkout."""
    content = verify_file(site, notify) if has_image_file(site) else verify_stored(site, notify)
    tell_differences(content, accelerator(site), notify)


def verify_file(site: SiteConfig, notify: Notify) -> ImageContent:
    """Check every byte of an image file, and run a command in it; write its record if it has none."""
    file, program = require_image(site), file_program(site)
    record = record_file(file)
    if not record.exists():
        write_record(file.resolve(), file.resolve(), program)
        notify(f"{record}: written, as there was none")
    raise_if_faulty(with_image(site, []))
    content = read_record(file).content
    if read_content(file, program) != content:
        raise UserError(f"{file}: its content is not what its record says", f"remove {record}, and verify again")
    notify(f"{file}: whole, for {content.arch}, {content.accelerator}, id {content.id[:12]}")
    return content


def verify_stored(site: SiteConfig, notify: Notify) -> ImageContent:
    """Ask the store of a runtime for the image and compare it with its record; write the record if there is none."""
    record, named = read_store_record(site), site.container.image
    if named and (record is None or record.reference != named):
        record = record_stored(site, named)
        notify(f"{named}: recorded, as there was no record of it")
    name = find_reference(site)[0]
    stored = require_stored(site, name)
    if record is not None and stored.digest != record.digest:
        raise UserError(
            f"{name}: the store has {stored.digest[:19]}, the record says {record.digest[:19]}: built or pulled again since",
            f"to record the one that is there: {image_command('verify')} --set container.image={shlex.quote(name)}",
        )
    content = read_stored_content(site, name)
    if record is not None and content != record.content:
        raise UserError(f"{name}: its content is not what its record says", f"build it again: {build_command()}")
    raise_if_other_machine(site, name, content)
    notify(f"{name}: as recorded, for {content.arch}, {content.accelerator}, id {content.id[:12]}")
    return content


def record_stored(site: SiteConfig, name: str) -> StoreRecord:
    """Read what an image in the store holds, and record it."""
    stored = require_stored(site, name)
    content = read_stored_content(site, name)
    raise_if_other_machine(site, name, content)
    record = StoreRecord(reference=name, digest=stored.digest, content=content)
    write_store_record(site, record)
    return record


def require_stored(site: SiteConfig, name: str) -> StoredImage:
    """Return the image that the store has under a name; raise if it is absent, or if nodes cannot have it yet."""
    stored = find_stored(site, name)
    runtime = site.container.runtime
    if stored is None:
        raise UserError(f"{name}: {runtime} has no image of this name", f"build it again: {build_command()}")
    if not stored.is_migrated:
        hint = f"type: podman-hpc migrate {name}" if runtime == "podman-hpc" else "wait, and ask: shifterimg images"
        raise UserError(f"{name}: compute nodes cannot have this image yet", hint)
    return stored


def raise_if_other_machine(site: SiteConfig, name: str, content: ImageContent) -> None:
    """Raise if an image is for other processors than the nodes of the site have."""
    wanted, found = (architecture(site), accelerator(site)), (content.arch, content.accelerator)
    if wanted != found:
        raise UserError(
            f"{name}: made for {found[1]} on {found[0]}, but nodes here have {wanted[1]} on {wanted[0]}",
            f"build one for them: {build_command()}",
        )


def inspect(site: SiteConfig) -> tuple[str, dict[str, Any]]:
    """Return the name of an image and what it holds; raise if it is not the image that its record describes."""
    if has_image_file(site):
        file = require_image(site)
        if record_file(file).exists():
            read_record(file, deep=True)  # a damaged file may still start, and tell of itself what was true
        return str(file.resolve()), inspect_image(file, file_program(site))
    name = site.container.image or find_reference(site)[0]
    stored, record = require_stored(site, name), read_store_record(site)
    content = read_stored_content(site, name)
    if record is not None and record.reference == name and record.content != content:
        raise UserError(f"{name}: its content is not what its record says", f"to compare: {image_command('verify')}")
    return f"{name} {stored.digest}".strip(), {"labels": {}, "content": content.model_dump(mode="json")}


def tell_differences(content: ImageContent, accelerator: str, notify: Notify) -> None:
    """Notify the user of what this checkout would put into an image in place of what is in it."""
    recipe = read_recipe(accelerator, content.base)
    if content.lock != recipe.lock:
        notify(
            f"its packages come from other requirements than those of this checkout; to build with these: {build_command()}"
        )
    names = recipe.code.keys() | content.code.keys()
    changed = sum(recipe.code.get(name) != content.code.get(name) for name in names)
    if changed:
        notify(f"{changed} files of code differ in this checkout; they are bound over the image's")
    else:
        notify("its code is that of this checkout")
