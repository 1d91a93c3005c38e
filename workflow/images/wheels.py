"""Fetches the Python packages of an image as wheels, on this machine, where pip is configured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.errors import UserError
from gnnscale.contract.places import DATA_ROOT
from workflow.images.command_log import CommandLog
from workflow.images.recipe import Recipe

PROBE_SECONDS = 30
# Fails without pip, as a virtual environment may have none.
PRINT_VERSION = "import pip, sys; print('%d.%d' % sys.version_info[:2])"


def fetch_wheels(recipe: Recipe, folder: Path, log: CommandLog) -> Path:
    """Fetch everything that pip will install, and build wheels of what comes as source; return their folder."""
    wheels = wheels_folder(recipe, folder)
    if is_complete(wheels):
        log.notify(f"wheels: present, {describe_wheels(wheels)}")
        return wheels
    wheels.mkdir(exist_ok=True)
    listed = wheels / "requirements.txt"
    listed.write_text("\n".join(recipe.requirements) + "\n")
    interpreter = find_interpreter(recipe.arguments["python"])
    words = pip_words(interpreter, wheels, DATA_ROOT / "constraints.txt", listed)
    log.run([*words, "--cache-dir", str(folder / "pip")], "wheels, fetched by pip", env={"DS_BUILD_OPS": "0"})
    files.write(wheels / "complete", "")
    log.notify(f"wheels: {describe_wheels(wheels)}")
    return wheels


def wheels_folder(recipe: Recipe, folder: Path) -> Path:
    return folder / f"wheels-{recipe.lock[:12]}"


def is_complete(wheels: Path) -> bool:
    return (wheels / "complete").exists()


def pip_words(interpreter: str, wheels: Path | str, constraints: Path | str, requirements: Path | str) -> list[str]:
    """Return the command that puts a wheel of each required package into a folder."""
    pip = [interpreter, "-m", "pip", "--disable-pip-version-check", "wheel", "--wheel-dir", str(wheels)]
    return [*pip, "--constraint", str(constraints), "--requirement", str(requirements)]


def describe_wheels(wheels: Path) -> str:
    found = list(wheels.glob("*.whl"))
    return f"{len(found)} packages, {sum(path.stat().st_size for path in found) / 1e6:.0f} MB"


def find_interpreter(version: str) -> str:
    """Return a Python of the image's minor version, as pip fetches packages for the Python that runs it."""
    for path in candidates(version):
        if is_usable(path, version):
            return path
    raise UserError(
        f"the image has Python {version}, and no python{version} with pip runs here to fetch its packages",
        f"install one, load its module, or type: conda create -y -p ~/python{version} python={version} pip",
        f"then put it first: export PATH=~/python{version}/bin:$PATH",
    )


def candidates(version: str) -> Iterator[str]:
    """Yield this process's own Python, and every program on PATH that is named after the version."""
    yield sys.executable
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        path = os.path.join(folder, f"python{version}")
        if folder and os.access(path, os.X_OK):
            yield path


def is_usable(path: str, version: str) -> bool:
    """Tell whether a program is a Python of this version with pip: some are shims of a version that is not installed."""
    try:
        done = subprocess.run([path, "-c", PRINT_VERSION], capture_output=True, text=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == version
