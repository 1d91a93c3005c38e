"""Builds the image file of a site with Apptainer or Singularity, without privileges.

A build can be resumed: each step keeps its product (the wheels, the base, the image), and nothing complete is made again.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from gnnscale.contract.errors import UserError
from workflow.config.site import SiteConfig
from workflow.images.apptainer import (
    build_environment,
    execute_words,
    file_program,
    temporary_folder,
)
from workflow.images.base_image import definition_arguments
from workflow.images.build_context import write_context
from workflow.images.command_log import CommandLog
from workflow.images.environment import check_words
from workflow.images.image_file import locate_image, read_record, write_record
from workflow.images.recipe import Recipe
from workflow.images.wheels import fetch_wheels


def sif_target(site: SiteConfig, recipe: Recipe) -> Path:
    """Return the file that the image of this recipe has, to which the site's link points."""
    link = locate_image(site)
    return link.with_name(f"{link.name.removesuffix('.sif')}-{recipe.digest[:12]}.sif")


def has_whole_sif(site: SiteConfig, recipe: Recipe) -> bool:
    try:
        read_record(sif_target(site, recipe), deep=True)
    except UserError:
        return False
    return True


def build_sif(site: SiteConfig, recipe: Recipe, log: CommandLog) -> None:
    """Fetch the packages, run the definition, test the image, and write it with its record."""
    target, program = sif_target(site, recipe), file_program(site)
    folder, part = target.parent, target.with_name(target.name + ".part")
    wheels = fetch_wheels(recipe, folder, log)
    with tempfile.TemporaryDirectory(prefix="build-", dir=temporary_folder(folder)) as work:
        run_definition(recipe, program, wheels, part, Path(work), log)
    keep_tested(site, part, target, recipe.accelerator, log)


def keep_tested(site: SiteConfig, part: Path, target: Path, accelerator: str, log: CommandLog) -> None:
    """Test an image as it will run: packed, read-only, without privileges; then give it its name and record."""
    program = file_program(site)
    # `apptainer test` runs what the definition says: nothing, in a file that was made from an OCI image.
    log.run([*execute_words(program), str(part), *check_words(accelerator)], "test of the image")
    write_record(part, target, program)
    os.replace(part, target)
    log.notify(f"{target}: {target.stat().st_size / 1e6:.0f} MB, id {read_record(target).content.id[:12]}")
    point_to(locate_image(site), target)


def point_to(link: Path, target: Path) -> None:
    """Let the site's link point to an image, in one step."""
    if link == target:
        return
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name if target.parent == link.parent else target)
    os.replace(temporary, link)


def run_definition(recipe: Recipe, program: str, wheels: Path, part: Path, work: Path, log: CommandLog) -> None:
    """Build the image from its definition in a work directory of its own."""
    os.chmod(work, 0o755)
    arguments = definition_arguments(recipe, part.parent, work, log)
    context = work / "context"
    write_context(recipe, context)
    (work / "tmp").mkdir(mode=0o1777)
    command = definition_words(program, wheels, work / "tmp", arguments)
    env = build_environment(temporary_folder(part.parent), program)
    log.run([*command, str(part), str(recipe.definition)], "image", env=env, cwd=context)


def definition_words(program: str, wheels: Path | str, tmp: Path | str, arguments: dict[str, str]) -> list[str]:
    """Return the words of a build before the names of image and definition."""
    # Without the second bind the build would have the /tmp of this machine, and see or damage the files of others.
    binds = ["--bind", f"{wheels}:/mnt", "--bind", f"{tmp}:/tmp"]
    words = [program, "build", "--force", "--fakeroot", "--notest", *binds]
    return [*words, *(word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}"))]
