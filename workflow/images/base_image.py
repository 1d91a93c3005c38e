"""Chooses the base of an image: the definition's own from a registry, a file, or one made of this machine's packages."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from gnnscale.contract import files
from workflow.images.apptainer import build_environment, temporary_folder
from workflow.images.command_log import CommandLog

BASE_PACKAGES = (
    "ca-certificates,libgomp1,python3,python3-venv,g++,libc6-dev"  # else post.sh fetches them for each image
)


def base_arguments(base: str, folder: Path, log: CommandLog) -> dict[str, str]:
    """Return the arguments of the definition that select the base: "registry", "machine" or a file."""
    if base == "registry":
        return {}
    path = machine_base(folder, log) if base == "machine" else Path(base).resolve()
    return {"bootstrap": "localimage", "base": str(path)}


def machine_base(folder: Path, log: CommandLog) -> Path:
    """Make a base image of the packages that this Debian machine uses, unless there is one already."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = release["VERSION_CODENAME"].strip('"')
    target = folder / f"base-{suite}-{os.uname().machine}-{files.digest(BASE_PACKAGES)[:8]}.sif"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(prefix="build-", dir=temporary_folder(folder)) as work:
        os.chmod(work, 0o755)
        tree = Path(work) / "root"
        words = ["--quiet", "--variant=minbase", f"--include={BASE_PACKAGES}", suite, str(tree), *package_sources()]
        log.run(["mmdebstrap", *words], f"base: Debian {suite}, of the packages that this machine uses")
        empty_folder(tree / "dev")  # unsquashfs makes no devices
        empty_folder(tree / "var/cache/apt")
        empty_folder(tree / "var/lib/apt/lists")
        command = ["apptainer", "build", "--force", f"{target}.part", str(tree)]
        log.run(command, "base: packed", env=build_environment(folder))
    os.replace(f"{target}.part", target)
    return target


def package_sources() -> list[str]:
    """List the files that tell apt of this machine where packages are."""
    candidates = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    return [
        str(path)
        for path in candidates
        if path.suffix in (".list", ".sources") and path.exists() and path.stat().st_size
    ]


def empty_folder(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
