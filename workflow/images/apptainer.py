"""Apptainer and Singularity as the driver itself calls them: to look into images, and with which options to build them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from gnnscale.contract.errors import UserError
from workflow.config.site import SiteConfig
from workflow.images.environment import IMAGE_HOME

PROBE_SECONDS = 120
SQUASHFS_OPTIONS = "-comp zstd -Xcompression-level 3"  # gzip, the default, took five times as long for 9 % less
PROGRAMS = ("apptainer", "singularity")  # each reads the image files of the other


def file_program(site: SiteConfig) -> str:
    """Return the program that handles image files here: the site's own, or the other where that alone is installed."""
    own = site.container.runtime if site.container.runtime in PROGRAMS else PROGRAMS[0]
    return next((name for name in (own, *PROGRAMS) if shutil.which(name)), own)


def inspect_image(file: Path, program: str) -> dict[str, Any]:
    """Return an image's labels and its image.json (spython is not used: it calls no command but `singularity`)."""
    labels = json.loads(capture_output([program, "inspect", "--json", str(file)]))["data"]["attributes"]["labels"]
    shown = capture_output([*execute_words(program), str(file), "cat", f"{IMAGE_HOME}/image.json"])
    return {"labels": labels, "content": json.loads(shown)}


def execute_words(program: str) -> list[str]:
    """Return the words that run a command in an image, without the user's environment and home."""
    return [program, "--quiet", "exec", "--cleanenv", "--no-home", *user_namespace_flags()]


def capture_output(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        raise UserError(f"no {command[0]} on PATH", "install it, or load the module that provides it")
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    if done.returncode:
        raise UserError(
            f"{' '.join(command[:3])}: {last_line(done.stderr)}",
            "the image may be damaged, or images may not run on this machine",
        )
    return done.stdout


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def user_namespace_flags() -> list[str]:
    """Return options with which root, who may lack capabilities, runs containers as a user does."""
    return ["--userns"] if os.geteuid() == 0 else []


def temporary_folder(folder: Path) -> Path:
    return Path(os.environ.get("APPTAINER_TMPDIR") or os.environ.get("SINGULARITY_TMPDIR") or folder)


def build_environment(folder: Path, program: str) -> dict[str, str]:
    """Return the variables of a build: a large temporary folder and cache, and how the image is packed."""
    name = program.upper()
    return {
        f"{name}_TMPDIR": str(folder),
        f"{name}_CACHEDIR": os.environ.get(f"{name}_CACHEDIR") or str(folder / "layers"),
        f"{name}_MKSQUASHFS_ARGS": os.environ.get(f"{name}_MKSQUASHFS_ARGS", SQUASHFS_OPTIONS),
    }
