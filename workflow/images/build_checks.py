"""Checks before an image is built: programs and their versions, namespaces, ids, architecture, Python, base and disk space."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from gnnscale.contract.errors import UserError
from workflow.config.site import SiteConfig
from workflow.images.apptainer import PROBE_SECONDS, file_program, temporary_folder
from workflow.images.build_oci import oci_program
from workflow.images.checks import missing_namespaces
from workflow.images.fault import Fault
from workflow.images.image_file import architecture, has_image_file
from workflow.images.program_checks import find_program_faults
from workflow.images.recipe import Recipe
from workflow.images.wheels import find_interpreter, is_complete, wheels_folder

# A build for CPUs needs 4.5: wheels 0.4, the tree 2.5, the image 0.5, and a second tree while it is packed. One for GPUs has
# never been measured; its wheels alone are 3 to 5.
BUILD_GIGABYTES = {"cpu": 6}
BUILD_GIGABYTES_OF_GPUS = 30
BASES = ("registry", "machine")


def find_build_faults(site: SiteConfig, recipe: Recipe, folder: Path, user: str | None = None) -> Iterator[Fault]:
    """Find the reasons why an image cannot be built here, before anything is fetched."""
    folder.mkdir(parents=True, exist_ok=True)
    if site.container.runtime != "ce":  # which builds on a compute node, where other programs are
        yield from find_builder_faults(site, user or pwd.getpwuid(os.geteuid()).pw_name)
    if architecture(site) != os.uname().machine:
        yield Fault(
            f"this machine is {os.uname().machine}, but the site's nodes are {site.arch}",
            "build on a machine like its nodes; `image context --out DIR` writes what to copy there",
        )
    store = [] if has_image_file(site) else podman_store(oci_program(site))
    yield from missing_space([folder, temporary_folder(folder), *store], recipe.accelerator)
    yield from find_base_faults(recipe.base)
    if not is_complete(wheels_folder(recipe, folder)):
        try:
            find_interpreter(recipe.arguments["python"])
        except UserError as problem:
            yield Fault(problem.message, "; ".join(problem.hints))


def find_builder_faults(site: SiteConfig, user: str) -> Iterator[Fault]:
    """Find that the program which builds cannot, or that this account may not."""
    yield from find_program_faults(file_program(site) if has_image_file(site) else oci_program(site))
    if has_image_file(site) or os.geteuid() != 0:
        yield from missing_subordinate_ids(user)
        if reason := missing_namespaces():
            yield Fault("no user namespaces", reason)


def podman_store(program: str) -> list[Path]:
    """Return the directory of a store, if its program says so."""
    if shutil.which(program) is None:
        return []
    words = [program, "info", "--format", "{{.Store.GraphRoot}}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PROBE_SECONDS, stdin=subprocess.DEVNULL)
    return [path for path in [Path(done.stdout.strip())] if done.returncode == 0 and path.is_dir()]


def find_base_faults(base: str) -> Iterator[Fault]:
    """Find that a base is no known word and no file, or cannot be made on this machine."""
    if base == "machine":
        if shutil.which("mmdebstrap") is None:
            yield Fault("--base machine needs mmdebstrap", "apt-get install mmdebstrap, or leave out --base")
        elif os.geteuid() != 0:
            yield Fault("--base machine needs root", "leave out --base: the base comes from a registry")
    elif base not in BASES and not Path(base).exists():
        yield Fault(
            f"--base {base}: no such file",
            f"expected {', '.join(BASES)}, or the file of an image: a SIF for Apptainer, an OCI archive for Podman",
        )


def missing_space(folders: Sequence[Path], accelerator: str) -> Iterator[Fault]:
    """Find the first folder whose disk has too little room."""
    needed = BUILD_GIGABYTES.get(accelerator, BUILD_GIGABYTES_OF_GPUS)
    for each in folders:
        free = shutil.disk_usage(each).free / 1e9
        if free < needed:
            yield Fault(
                f"{each}: {free:.1f} GB are free, a build needs {needed}",
                "make room; APPTAINER_TMPDIR names a directory for temporary files, graphroot in storage.conf Podman's store",
            )
            return


def missing_subordinate_ids(user: str, etc: Path = Path("/etc")) -> Iterator[Fault]:
    """Find that a user has no subordinate ids, which a build needs for files of several owners."""
    for name in ("subuid", "subgid"):
        try:
            lines = (etc / name).read_text().splitlines()
        except OSError:
            lines = []
        if not any(line.split(":")[0] in (user, str(os.geteuid())) for line in lines):
            yield Fault(
                f"/etc/{name} gives {user} no subordinate ids, which an unprivileged build (fakeroot) needs",
                f"ask an administrator to type: usermod --add-{name}s 100000-165535 {user}; or build elsewhere: "
                "`image context --out DIR` writes what to copy there",
            )
            return
