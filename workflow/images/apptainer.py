"""TODO: say what a reader finds here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from gnnscale.contract.errors import UserError
from workflow.images import environment

PROBE_SECONDS = 120


def inspect_image(file: Path) -> dict[str, Any]:
    """Labels and what is in it, from the image itself. (Not by spython, which calls `singularity` and nothing else.)"""
    labels = json.loads(capture_output(["apptainer", "inspect", "--json", str(file)]))["data"]["attributes"]["labels"]
    read = [
        "apptainer",
        "--quiet",
        "exec",
        "--no-home",
        *user_namespace_flags(),
        str(file),
        "cat",
        f"{environment.IMAGE_HOME}/image.json",
    ]
    return {"labels": labels, "content": json.loads(capture_output(read))}


def capture_output(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        raise UserError(f"no {command[0]} on PATH", "install it, or load the module that brings it")
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise UserError(
            f"{' '.join(command[:3])}: {last[-1].strip()}", "the image may be damaged, or nothing runs in images here"
        )
    return done.stdout


def user_namespace_flags() -> list[str]:
    """Root without all of its capabilities runs containers as a user does."""
    return ["--userns"] if os.geteuid() == 0 else []
