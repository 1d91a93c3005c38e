"""Checks of the programs that build and run images: present, working, and new enough."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

from workflow.images.apptainer import PROBE_SECONDS, last_line
from workflow.images.fault import Fault

# The first versions that know the options used here: %arguments and --build-arg; `pull` of a transport, `untag`.
OLDEST = {"apptainer": (1, 2), "singularity": (4, 0), "podman": (4, 0), "podman-hpc": (4, 0)}


def find_program_faults(program: str) -> Iterator[Fault]:
    """Find that the program which builds or runs images is absent, does not work, or is too old."""
    if shutil.which(program) is None:
        yield Fault(
            f"no {program} on PATH",
            "install it, or load the module that provides it; `image context --out DIR` writes what to build elsewhere",
        )
        return
    words = [program, "version"]  # podman-hpc has no --version, and answers with Podman's
    done = subprocess.run(words, capture_output=True, text=True, timeout=PROBE_SECONDS, stdin=subprocess.DEVNULL)
    if done.returncode:
        yield Fault(
            f"{program} does not work: {last_line(done.stderr or done.stdout)}", f"try by hand: {' '.join(words)}"
        )
        return
    version = re.search(r"(\d+)\.(\d+)", done.stdout)
    oldest = OLDEST.get(program)
    if version and oldest and (int(version[1]), int(version[2])) < oldest:
        wanted = ".".join(map(str, oldest))
        yield Fault(
            f"{program}: release {version[0]} is too old, {wanted} or later is needed",
            "load a later module; an image can be built elsewhere: `image context --out DIR` writes what to copy there",
        )
