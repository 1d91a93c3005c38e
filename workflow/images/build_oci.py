"""Builds the image of a site in the store of podman or podman-hpc, tests it there, and records it.

A build can be resumed: wheels, base and image stay, and only an image that passed its test gets its name.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from gnnscale.contract.places import CONTAINERS
from workflow.config.container import PODMAN_RUNTIMES
from workflow.config.site import SiteConfig
from workflow.images.apptainer import temporary_folder
from workflow.images.base_image import fetch_oci_base, working_container
from workflow.images.build_context import write_context
from workflow.images.command_log import CommandLog, Notify
from workflow.images.environment import check_words
from workflow.images.image_file import ImageContent, architecture, read_store_record
from workflow.images.image_store import find_stored, read_stored_content
from workflow.images.recipe import CONTAINERFILE, Recipe
from workflow.images.verify_image import record_stored
from workflow.images.wheels import fetch_wheels


def oci_program(site: SiteConfig) -> str:
    """Return the program that builds OCI images for a site: its runtime, or for another runtime the one that is here."""
    if site.container.runtime in PODMAN_RUNTIMES:
        return site.container.runtime
    return next((name for name in PODMAN_RUNTIMES if shutil.which(name)), "podman")


def with_builder(site: SiteConfig) -> SiteConfig:
    """Return the site with the runtime in whose store its image is built and recorded."""
    changed = {"runtime": oci_program(site), "image": None, "digest": None}
    return site.model_copy(update={"container": site.container.model_copy(update=changed)})


def image_name(site: SiteConfig, recipe: Recipe) -> str:
    return f"localhost/gnnscale:{recipe.accelerator}-{architecture(site)}-{recipe.digest[:12]}"


def has_recorded_image(site: SiteConfig, recipe: Recipe, notify: Notify) -> bool:
    """Tell whether the image of this recipe is recorded, and is what the store has."""
    record = read_store_record(site)
    if record is None or record.content.recipe != recipe.digest or shutil.which(store_program(site)) is None:
        return False
    stored = find_stored(site, record.reference)
    if stored is None or not stored.is_migrated or stored.digest != record.digest:
        return False
    notify(f"{record.reference}: present")
    return True


def store_program(site: SiteConfig) -> str:
    """Return the program that answers for the store of the site's runtime."""
    return {"shifter": "shifterimg", "ce": "unsquashfs"}.get(site.container.runtime, site.container.runtime)


def build_oci(site: SiteConfig, recipe: Recipe, log: CommandLog) -> None:
    """Build, test, name and record the image of this recipe; an image that has its name was tested before."""
    program, name = oci_program(site), image_name(site, recipe)
    folder = log.path.parent
    if not log.succeeds([program, "image", "exists", name]):
        remove_unfinished(program, folder, log)
        base = fetch_oci_base(recipe, program, folder, log)  # first, as it fails at once where no registry is reached
        wheels = fetch_wheels(recipe, folder, log)
        with tempfile.TemporaryDirectory(prefix="build-", dir=temporary_folder(folder)) as work:
            run_containerfile(site, recipe, base, wheels, Path(work), log)
    publish(site, name, log)


def remove_unfinished(program: str, folder: Path, log: CommandLog) -> None:
    """Remove the containers in which a killed build worked; they are named after the base, which is this folder's own."""
    listed = subprocess.run(
        [program, "ps", "--all", "--external", "--noheading", "--format", "{{.ID}} {{.Names}}"],
        capture_output=True,
        text=True,
    ).stdout
    for id, _, name in (line.partition(" ") for line in listed.splitlines()):
        if name.startswith(working_container(folder)):
            log.run([program, "rm", "--force", id], "a container of a build that was killed: removed")


def run_containerfile(site: SiteConfig, recipe: Recipe, base: str, wheels: Path, work: Path, log: CommandLog) -> None:
    """Build and test the image, and let it have its name if it passes."""
    context, program, name = work / "context", oci_program(site), image_name(site, recipe)
    write_context(recipe, context)
    shutil.copy(CONTAINERS / CONTAINERFILE, context)
    unchecked = f"{name}-unchecked"
    log.run(build_words(program, recipe.accelerator, base, wheels, unchecked, context), "image")
    log.run([*run_words(program, unchecked), *check_words(recipe.accelerator)], "test of the image")
    content = read_stored_content(site, unchecked)
    (work / "labels").write_text(label_file(unchecked, content))
    log.run([program, "build", "--file", str(work / "labels"), "--tag", name, str(work)], "image: labelled")
    log.succeeds([program, "untag", unchecked, unchecked])


def build_words(
    program: str, accelerator: str, base: str, wheels: Path | str, name: str, context: Path | str
) -> list[str]:
    """Return the command that builds an image from the context, with the wheels mounted at /mnt."""
    # The network of the machine: a network of its own needs more programs, and a build needs at most the package sources.
    # Without layers of its own for each step, all work is done in one container, which is named after the base.
    options = [
        "--network=host",
        "--layers=false",
        "--build-arg",
        f"base={base}",
        "--build-arg",
        f"accelerator={accelerator}",
    ]
    file = ["--file", f"{context}/{CONTAINERFILE}"]
    return [program, "build", *options, "--volume", f"{wheels}:/mnt:ro", *file, "--tag", name, str(context)]


def run_words(program: str, name: str) -> list[str]:
    """Return the words that run a command in an image as stages run: read-only, with a /tmp of its own."""
    return [program, "run", "--rm", "--read-only", "--network=host", "--env=HOME=/tmp", name]


def label_file(name: str, content: ImageContent) -> str:
    """Return a build of one step that adds to an image what can be read of it without running it."""
    labels = {key: getattr(content, key) for key in ("id", "accelerator", "version", "commit", "lock", "recipe")}
    words = " ".join(f'gnnscale.{key}="{value}"' for key, value in labels.items())
    return f"FROM {name}\nLABEL {words}\n"


def publish(site: SiteConfig, name: str, log: CommandLog) -> None:
    """Let compute nodes have the image, and record what the store has then."""
    if site.container.runtime == "podman-hpc":
        log.run(["podman-hpc", "migrate", name], "image: migrated, for compute nodes")  # ends with 0 in every case
    record = record_stored(site, name)
    log.notify(f"{name}: {record.digest[:19]}, id {record.content.id[:12]}")
