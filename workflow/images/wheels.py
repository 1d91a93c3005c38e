"""Fetches the Python packages of an image as wheels, on this machine, where pip is configured."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.errors import UserError
from gnnscale.contract.places import DATA_ROOT
from workflow.images.command_log import CommandLog
from workflow.images.recipe import Recipe


def fetch_wheels(recipe: Recipe, folder: Path, log: CommandLog) -> Path:
    """Fetch everything that pip will install, and build wheels of what comes as source; return their folder."""
    wheels = folder / f"wheels-{recipe.lock[:12]}"
    if (wheels / "complete").exists():
        log.notify(f"wheels: present, {describe_wheels(wheels)}")
        return wheels
    interpreter = find_interpreter(recipe.arguments["python"])
    wheels.mkdir(exist_ok=True)
    listed = wheels / "requirements.txt"
    listed.write_text("\n".join(recipe.requirements) + "\n")
    pip = [interpreter, "-m", "pip", "--disable-pip-version-check"]
    folders = ["--wheel-dir", str(wheels), "--cache-dir", str(folder / "pip")]
    wanted = ["--constraint", str(DATA_ROOT / "constraints.txt"), "--requirement", str(listed)]
    log.run([*pip, "wheel", *folders, *wanted], "wheels, fetched by pip", env={"DS_BUILD_OPS": "0"})
    files.write(wheels / "complete", "")
    log.notify(f"wheels: {describe_wheels(wheels)}")
    return wheels


def describe_wheels(wheels: Path) -> str:
    found = list(wheels.glob("*.whl"))
    return f"{len(found)} packages, {sum(path.stat().st_size for path in found) / 1e6:.0f} MB"


def find_interpreter(version: str) -> str:
    """Return a Python of the image's minor version, as pip fetches packages for the Python that runs it."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    found = shutil.which(f"python{version}")
    if found is None:
        raise UserError(
            f"the image has Python {version}, and there is no python{version} here to fetch its packages with",
            f"install python{version}",
        )
    return found
