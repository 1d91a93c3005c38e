"""Apptainer as the driver itself calls it: to look into images, and with which options and environment to build them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from gnnscale.contract.errors import UserError
from workflow.images.environment import IMAGE_HOME

PROBE_SECONDS = 120
SQUASHFS_OPTIONS = "-comp zstd -Xcompression-level 3"  # gzip, the default, took five times as long for 9 % less


def inspect_image(file: Path) -> dict[str, Any]:
    """Return an image's labels and its image.json (spython is not used: it calls no command but `singularity`)."""
    labels = json.loads(capture_output(["apptainer", "inspect", "--json", str(file)]))["data"]["attributes"]["labels"]
    execute = ["apptainer", "--quiet", "exec", "--no-home", *user_namespace_flags(), str(file)]
    return {"labels": labels, "content": json.loads(capture_output([*execute, "cat", f"{IMAGE_HOME}/image.json"]))}


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
    return Path(os.environ.get("APPTAINER_TMPDIR") or folder)


def build_environment(folder: Path) -> dict[str, str]:
    return {
        "APPTAINER_TMPDIR": str(folder),
        "APPTAINER_CACHEDIR": os.environ.get("APPTAINER_CACHEDIR") or str(folder / "layers"),
        "APPTAINER_MKSQUASHFS_ARGS": os.environ.get("APPTAINER_MKSQUASHFS_ARGS", SQUASHFS_OPTIONS),
    }
