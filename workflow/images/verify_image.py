"""The command `image verify`: checks every byte of an image, its content, and whether this checkout would build it."""

from __future__ import annotations

from gnnscale.contract.errors import UserError
from workflow.config.site import SiteConfig
from workflow.images.checks import raise_if_faulty
from workflow.images.command_log import Notify
from workflow.images.image_file import (
    accelerator,
    build_command,
    read_content,
    read_record,
    record_file,
    require_image,
    with_image,
    write_record,
)
from workflow.images.recipe import read_recipe


def verify(site: SiteConfig, notify: Notify) -> None:
    """Verify the image of a site; raise if it is damaged, and notify the user of differences from this checkout."""
    file = require_image(site)
    record = record_file(file)
    if not record.exists():
        write_record(file.resolve(), file.resolve())
        notify(f"{record}: written, as there was none")
    raise_if_faulty(with_image(site, []))
    content = read_record(file).content
    if read_content(file) != content:
        raise UserError(f"{file}: its content is not what its record says", f"remove {record}, and verify again")
    notify(f"{file}: whole, for {content.arch}, {content.accelerator}, id {content.id[:12]}")
    recipe = read_recipe(accelerator(site), content.base)
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
