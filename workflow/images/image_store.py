"""The store in which a runtime keeps its images: which image has a name there, and what the image holds.

Apptainer and Singularity have no store: their images are files (image_file.py). The container engine of CSCS takes an image
from a file, F.sqsh, or from a registry.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from gnnscale.contract.errors import UserError
from workflow.config.site import SiteConfig
from workflow.images.apptainer import PROBE_SECONDS, last_line
from workflow.images.environment import IMAGE_HOME
from workflow.images.image_file import ImageContent

CONTENT_FILE = f"{IMAGE_HOME}/image.json"
ARCH_OF_OCI = {"amd64": "x86_64", "arm64": "aarch64"}


class StoredImage(NamedTuple):
    """An image in the store of a runtime."""

    reference: str  # as the runtime names it
    digest: str  # of its manifest, sha256:...; "" if the runtime does not tell
    arch: str  # "" if the runtime does not tell
    is_migrated: bool  # compute nodes can have it too


def find_stored(site: SiteConfig, reference: str) -> StoredImage | None:
    """Return the image that has this name in the store of the site's runtime; raise if the runtime cannot be asked."""
    return FINDERS[site.container.runtime](site.container.runtime, reference)


def read_stored_content(site: SiteConfig, reference: str) -> ImageContent:
    """Read image.json in an image, by a command that runs in it."""
    runtime = site.container.runtime
    text = ask_runtime(READERS[runtime](reference))
    try:
        return ImageContent.model_validate_json(text)
    except ValidationError:
        raise UserError(
            f"{reference}: {CONTENT_FILE} in it is no description of an image of gnnscale",
            "give the name of an image that `image build` or `image context` made: --set container.image=NAME",
        ) from None


# ---------------------------------------------------------------------------------------------------------- podman
def find_in_podman(runtime: str, reference: str) -> StoredImage | None:
    """Look through all images: podman-hpc exits with 0 in every case, and lists an image again once it is migrated."""
    entries = parse_entries(ask_runtime([runtime, "images", "--format", "json"]))
    found = [entry for entry in entries if has_name(entry, reference)]
    if not found:
        return None
    is_migrated = runtime == "podman" or any(entry.get("ReadOnly") for entry in found)
    chosen = next((entry for entry in found if entry.get("ReadOnly")), found[0])  # nodes run the one that is migrated
    return StoredImage(reference, str(chosen.get("Digest", "")), read_podman_arch(runtime, chosen), is_migrated)


def parse_entries(text: str) -> list[dict[str, Any]]:
    try:
        entries = json.loads(text or "[]")
    except ValueError:
        raise UserError(f"the list of images cannot be read: {last_line(text)}", "try again") from None
    return [entry for entry in entries if isinstance(entry, dict)]


def has_name(entry: dict[str, Any], reference: str) -> bool:
    """Return whether an entry of `images` has this name, with or without its host, or this digest or id."""
    full = reference if ":" in reference.rpartition("/")[2] else f"{reference}:latest"
    names = [*(entry.get("Names") or ()), *(entry.get("RepoDigests") or ())]
    return any(name == full or name.endswith(f"/{full}") for name in names) or str(entry.get("Id")) == reference


def read_podman_arch(runtime: str, entry: dict[str, Any]) -> str:
    """Return the architecture, which `images` does not list; `inspect` sees no image that is migrated alone."""
    command = [runtime, "image", "inspect", "--format", "{{.Architecture}}", str(entry.get("Id", ""))]
    arch = run_runtime(command).stdout.strip()
    return ARCH_OF_OCI.get(arch, arch)


def podman_reader(runtime: str) -> Callable[[str], list[str]]:
    options = ["--rm", "--read-only", "--network=host", "--pull=never"]  # a name that is absent is no reason to search
    return lambda reference: [runtime, "run", *options, reference, "cat", CONTENT_FILE]


# --------------------------------------------------------------------------------------------------------- shifter
def find_in_shifter(runtime: str, reference: str) -> StoredImage | None:
    """Look through `shifterimg images`: SYSTEM TYPE STATUS ID DATE NAME, where only READY is an image that runs."""
    wanted = reference.removeprefix("docker:")
    for line in ask_runtime(["shifterimg", "images"]).splitlines():
        words = line.split()
        if len(words) >= 6 and words[-1] == wanted:
            return StoredImage(reference, "", "", words[2] == "READY")
    return None


def shifter_reader(reference: str) -> list[str]:
    return ["shifter", f"--image={reference}", "cat", CONTENT_FILE]


# ------------------------------------------------------------------------------------------ container engine of CSCS
def find_for_engine(runtime: str, reference: str) -> StoredImage | None:
    """Look for the file; an image of a registry is taken from there by the nodes, and is not looked for from here."""
    if not is_squash_file(reference):
        return StoredImage(reference, reference.partition("@")[2], "", True)
    return StoredImage(reference, "", "", True) if expand(reference).is_file() else None


def is_squash_file(reference: str) -> bool:
    return reference.startswith(("/", "$", "~", ".")) or reference.endswith(".sqsh")


def expand(reference: str) -> Path:
    return Path(os.path.expandvars(reference)).expanduser()


def engine_reader(reference: str) -> list[str]:
    """Return the command that reads a file of an image that Slurm alone can run."""
    if not is_squash_file(reference):
        raise UserError(
            f"{reference}: an image in a registry cannot be looked into from here",
            "import it into a file, F.sqsh, and name that: --set container.image=F.sqsh",
        )
    return ["unsquashfs", "-cat", str(expand(reference)), CONTENT_FILE.lstrip("/")]


FINDERS: dict[str, Callable[[str, str], StoredImage | None]] = {
    "podman": find_in_podman,
    "podman-hpc": find_in_podman,
    "shifter": find_in_shifter,
    "ce": find_for_engine,
}
READERS: dict[str, Callable[[str], list[str]]] = {
    "podman": podman_reader("podman"),
    "podman-hpc": podman_reader("podman-hpc"),
    "shifter": shifter_reader,
    "ce": engine_reader,
}


# ------------------------------------------------------------------------------------------------- asking a runtime
def ask_runtime(command: Sequence[str]) -> str:
    """Return what a command of a runtime prints; raise with its own last line if it fails."""
    done = run_runtime(command)
    if done.returncode:
        raise UserError(
            f"{command[0]} ended with code {done.returncode}: {last_line(done.stderr or done.stdout)}",
            f"try by hand: {' '.join(command)}",
        )
    return done.stdout


def run_runtime(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        raise UserError(f"no {command[0]} on PATH", "install it, or load the module that provides it")
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]} has not answered for {PROBE_SECONDS} s", f"try by hand: {' '.join(command)}"
        ) from None
