"""Chooses the base of an image: the recipe's own from a registry, a file, or one made of this machine's packages."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from gnnscale.contract import files
from workflow.images.apptainer import temporary_folder
from workflow.images.command_log import CommandLog
from workflow.images.recipe import Recipe

# Packages that post.sh would otherwise fetch for each image.
BASE_PACKAGES = "ca-certificates,libgomp1,python3,python3-venv,g++,libc6-dev"


def definition_arguments(recipe: Recipe, folder: Path, work: Path, log: CommandLog) -> dict[str, str]:
    """Return the arguments of Apptainer's definition that select the base: "registry", "machine" or a file."""
    if recipe.base == "registry":
        return {}
    path = Path(recipe.base).resolve()
    if recipe.base == "machine":
        path = work / "base"
        path.mkdir(mode=0o755)
        log.run(["tar", "--numeric-owner", "-xf", str(machine_base(folder, log)), "-C", str(path)], "base: unpacked")
    return {"bootstrap": "localimage", "base": str(path)}


def fetch_oci_base(recipe: Recipe, program: str, folder: Path, log: CommandLog) -> str:
    """Bring the base into the store of `program`, unless it is there, and return its name."""
    name = oci_base_name(recipe, folder)
    if log.succeeds([program, "image", "exists", name]):
        log.notify("base: present")
    elif recipe.base == "machine":
        log.run([program, "import", str(machine_base(folder, log)), name], "base: imported")
    else:
        source = oci_base_source(recipe)
        id = log.run([program, "image", "pull", source], f"base: {source}")
        log.run([program, "tag", id, name], "base: named")
    return name


def oci_base_source(recipe: Recipe) -> str:
    """Return the base as the programs for OCI images name it, with its transport."""
    if recipe.base == "registry":
        return f"{recipe.arguments['bootstrap']}://{recipe.arguments['base']}"
    return f"oci-archive:{Path(recipe.base).resolve()}"


def oci_base_name(recipe: Recipe, folder: Path) -> str:
    """Return the name that a base has in the store; the containers in which a build works are named after it.

    The name belongs to this folder of images, so that containers which a killed build has left can be told from others.
    """
    tag = (
        machine_base_file(folder).stem
        if recipe.base == "machine"
        else re.sub(r"[^\w.-]+", "-", oci_base_source(recipe))
    )
    return f"localhost/{base_repository(folder)}:{tag}"


def base_repository(folder: Path) -> str:
    return f"gnnscale-base-{files.digest(str(folder))[:8]}"


def working_container(folder: Path) -> str:
    """Return how the names of containers begin in which a build of this folder's images works."""
    return f"{base_repository(folder)}-working-container"


def machine_base_file(folder: Path) -> Path:
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = release["VERSION_CODENAME"].strip('"')
    return folder / f"base-{suite}-{os.uname().machine}-{files.digest(BASE_PACKAGES)[:8]}.tar"


def machine_base(folder: Path, log: CommandLog) -> Path:
    """Make an archive of the packages that this Debian machine uses, unless there is one already."""
    target = machine_base_file(folder)
    if target.exists():
        return target
    suite = target.name.split("-")[1]
    with tempfile.TemporaryDirectory(prefix="build-", dir=temporary_folder(folder)) as work:
        os.chmod(work, 0o755)
        tree = Path(work) / "root"
        words = ["--quiet", "--variant=minbase", f"--include={BASE_PACKAGES}", suite, str(tree), *package_sources()]
        log.run(["mmdebstrap", *words], f"base: Debian {suite}, of the packages that this machine uses")
        for name in ("dev", "var/cache/apt", "var/lib/apt/lists"):  # a build gets devices from its runtime
            empty_folder(tree / name)
        log.run(["tar", "--numeric-owner", "-cf", f"{target}.part", "-C", str(tree), "."], "base: packed")
    os.replace(f"{target}.part", target)
    return target


def package_sources() -> list[str]:
    """List the files in which this machine's apt finds its package sources."""
    found = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    return [
        str(path) for path in found if path.suffix in (".list", ".sources") and path.exists() and path.stat().st_size
    ]


def empty_folder(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
