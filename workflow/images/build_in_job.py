"""Builds or fetches the image file of CSCS's container engine in one batch job, as podman's store there ends with the job."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.errors import UserError
from gnnscale.contract.places import images_folder
from workflow.config.site import SiteConfig
from workflow.config.walltime import format_walltime
from workflow.images.build_oci import image_name, run_words
from workflow.images.build_script import SCRIPT, export_lines, write_build_folder
from workflow.images.command_log import CommandLog
from workflow.images.environment import check_words
from workflow.images.image_file import accelerator
from workflow.images.recipe import Recipe
from workflow.images.verify_image import record_stored
from workflow.images.wheels import fetch_wheels

BUILD_SECONDS = 3600


def build_in_job(site: SiteConfig, recipe: Recipe, log: CommandLog) -> None:
    """Build the image on a compute node, from wheels that are fetched here."""
    target = squash_file(image_name(site, recipe))
    wheels = fetch_wheels(recipe, target.parent, log)
    folder = target.parent / "build-job"  # on a file system that nodes see, where a temporary folder may not be
    write_build_folder(site, recipe, folder)
    (folder / "wheels").symlink_to(wheels.resolve())
    run_job(site, f"exec sh {shlex.quote(str(folder / SCRIPT))} podman {shlex.quote(str(target))}", target, log)


def pull_in_job(site: SiteConfig, source: str, log: CommandLog) -> None:
    """Fetch an image on a compute node, test it, and write it into a file."""
    target = squash_file(f"{accelerator(site)}:pulled-{files.digest(source)[:12]}")
    name = "localhost/gnnscale:pulled"
    lines = [
        "set -eu",
        f"program=podman file={shlex.quote(str(target))}",
        f"podman tag $(podman pull --quiet {shlex.quote(source)}) {name}",
        shlex.join([*run_words("podman", name), *check_words(accelerator(site))]),
        *export_lines(name),
    ]
    run_job(site, "\n".join(lines), target, log)


def squash_file(name: str) -> Path:
    return images_folder() / f"{name.rpartition(':')[2]}.sqsh"


def run_job(site: SiteConfig, commands: str, target: Path, log: CommandLog) -> None:
    """Wait for a job that writes the file, and record what is in it."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "no sbatch on PATH: this image is built in a batch job", "log in to the site, and type it there"
        )
    job, output = target.parent / "build-job.sh", target.parent / "build-job.log"
    job.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("")
    files.write(job, "\n".join(["#!/bin/sh", *(f"#SBATCH {each}" for each in directives(site, output)), commands, ""]))
    try:
        log.run(["sbatch", "--wait", str(job)], "image, in a batch job; its queue may take long")
    except UserError as error:
        raise UserError(error.message, *error.hints, f"the end of {output}:", *last_lines(output)) from None
    record = record_stored(site, str(target))
    log.notify(f"{target}: {target.stat().st_size / 1e6:.0f} MB, id {record.content.id[:12]}")


def last_lines(output: Path) -> list[str]:
    lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
    return [f"    | {line}" for line in lines[-12:]]


def directives(site: SiteConfig, output: Path) -> list[str]:
    """Return the options of the job: one node of the queue that stages without ranks use."""
    if site.account is None and site.account_rule.required:
        raise UserError("the job that builds the image needs an account", "add --set account=NAME")
    name = site.serial.queue if site.serial else next(iter(site.queues))
    queue = site.queues[name]
    partition = name if queue.partition is None else queue.partition
    found = {"account": site.account, "partition": partition, "qos": queue.qos}
    walltime = format_walltime(min(BUILD_SECONDS, queue.longest_seconds))
    own = [f"--nodes=1 --time={walltime} --job-name=gnnscale-image", f"--output={output}"]
    return [
        *site.batch_scheduler.directives,
        *queue.directives,
        *(f"--{key}={value}" for key, value in found.items() if value),
        *own,
    ]
