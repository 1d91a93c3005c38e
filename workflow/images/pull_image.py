"""The command `image pull`: obtains an image that was built elsewhere, tests it as it will run, and records it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from gnnscale.contract.errors import UserError
from gnnscale.contract.places import images_folder
from workflow.config.site import SiteConfig
from workflow.images.apptainer import build_environment, file_program, temporary_folder
from workflow.images.build_image import hold_build_lock
from workflow.images.build_in_job import pull_in_job
from workflow.images.build_oci import publish, run_words
from workflow.images.build_sif import keep_tested
from workflow.images.command_log import CommandLog, Notify
from workflow.images.environment import check_words
from workflow.images.image_file import (
    accelerator,
    architecture,
    has_image_file,
    image_command,
    locate_image,
    read_content,
)
from workflow.images.image_store import read_stored_content
from workflow.images.push_image import scheme_of
from workflow.images.verify_image import raise_if_other_machine, record_stored

SOURCES_OF_FILES = "docker://HOST/NAME@sha256:DIGEST, oras://HOST/NAME@sha256:DIGEST, oci-archive:FILE or FILE.sif"
SOURCES_OF_STORES = "docker://HOST/NAME@sha256:DIGEST or oci-archive:FILE"
SOURCES_OF_SHIFTER = "docker://HOST/NAME@sha256:DIGEST"


def pull(site: SiteConfig, source: str, notify: Notify) -> None:
    """Obtain, test and record an image."""
    runtime = site.container.runtime
    scheme = scheme_of(source)
    raise_if_no_way(runtime, scheme, source)
    raise_if_absent(scheme, source)
    folder = locate_image(site).parent if has_image_file(site) else images_folder()
    with hold_build_lock(folder):
        log = CommandLog(folder / "build.log", notify)
        log.path.write_text("")
        PULLERS[runtime](site, source, log)


def raise_if_no_way(runtime: str, scheme: str, source: str) -> None:
    """Raise if the runtime cannot take an image from such a place, before anything is fetched."""
    if runtime in ("apptainer", "singularity"):
        expected, is_known = SOURCES_OF_FILES, scheme in ("docker", "oras", "oci-archive") or source.endswith(".sif")
    elif runtime == "shifter":
        expected, is_known = SOURCES_OF_SHIFTER, scheme == "docker"
    else:
        expected, is_known = SOURCES_OF_STORES, scheme in ("docker", "oci-archive")
    if not is_known or (scheme in ("docker", "oras") and not re.fullmatch(r"[a-z]+://[^/\s]+/\S+", source)):
        hint = ["oras:// and FILE.sif hold image files of Apptainer, which no other runtime reads"]
        raise UserError(
            f"--from {source}: {runtime} takes no image from there; expected {expected}",
            *(hint if scheme == "oras" or source.endswith(".sif") else []),
        )


def raise_if_absent(scheme: str, source: str) -> None:
    path = Path(source.removeprefix("oci-archive:"))
    if scheme not in ("docker", "oras") and not path.is_file():
        raise UserError(f"--from {source}: no such file", "copy it here first, for example by scp or Globus")


def pull_file(site: SiteConfig, source: str, log: CommandLog) -> None:
    """Make an image file of what is in a registry, an archive or a file."""
    link, program = locate_image(site), file_program(site)
    part = link.with_name(link.name + ".part")
    if scheme_of(source):
        # What is built from an OCI image needs no privileges: its layers are unpacked and packed again.
        words = ["pull", "--force"] if scheme_of(source) == "oras" else ["build", "--force"]
        env = build_environment(temporary_folder(part.parent), program)
        log.run([program, *words, str(part), source], f"image from {source}", env=env)
    else:
        shutil.copyfile(source, part)
    content = read_content(part, program)
    raise_if_other_machine(site, source, content)
    target = link.with_name(f"{link.name.removesuffix('.sif')}-{content.recipe[:12]}.sif")
    keep_tested(site, part, target, content.accelerator, log)


def pull_stored(site: SiteConfig, source: str, log: CommandLog) -> None:
    """Bring an image into the store of podman or podman-hpc, and give it its name there if it passes its test."""
    program = site.container.runtime
    # Not `pull`, by which podman-hpc also migrates, before the test, and under a name that it does not find.
    id = log.run([program, "image", "pull", source], f"image from {source}")
    content = read_stored_content(site, id)
    raise_if_other_machine(site, source, content)
    log.run([*run_words(program, id), *check_words(content.accelerator)], "test of the image")
    name = f"localhost/gnnscale:{accelerator(site)}-{architecture(site)}-{content.recipe[:12]}"
    log.run([program, "tag", id, name], "image: named")
    publish(site, name, log)


def pull_to_shifter(site: SiteConfig, source: str, log: CommandLog) -> None:
    """Ask Shifter's gateway for an image, and record it if it is there then: the gateway reports failures in words."""
    name = source.removeprefix("docker://")
    last = log.run(["shifterimg", "pull", name], f"image from {source}")
    try:
        record = record_stored(site, name)
    except UserError as error:
        raise UserError(
            f"{name}: Shifter has not got it: {last}",
            *error.hints,
            "for a registry that asks for a password: shifterimg login HOST",
            f"then: {image_command('pull')} --from {source}",
        ) from None
    log.notify(f"{name}: id {record.content.id[:12]}")


PULLERS = {
    "apptainer": pull_file,
    "singularity": pull_file,
    "podman": pull_stored,
    "podman-hpc": pull_stored,
    "shifter": pull_to_shifter,
    "ce": pull_in_job,
}
