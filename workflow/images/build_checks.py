"""Checks before an image is built: programs, user namespaces, subordinate ids, architecture and disk space."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path

from workflow.config.site import SiteConfig
from workflow.images.apptainer import temporary_folder
from workflow.images.checks import Fault, missing_namespaces
from workflow.images.image_file import architecture

BUILD_GIGABYTES = 6  # a build needs 4.5: wheels 0.4, the tree 2.5, the image 0.5, and a second tree while it is packed


def find_build_faults(site: SiteConfig, base: str, folder: Path, user: str | None = None) -> Iterator[Fault]:
    """Find the reasons why an image cannot be built here, before anything is fetched."""
    if shutil.which("apptainer") is None:
        yield Fault(
            "no apptainer on PATH",
            "install it (apptainer.org; `tests/support/apptainer.sh install` on a Debian machine)",
        )
    yield from missing_subordinate_ids(user or pwd.getpwuid(os.geteuid()).pw_name)
    if reason := missing_namespaces():
        yield Fault("no user namespaces", reason)
    if architecture(site) != os.uname().machine:
        yield Fault(
            f"this machine is {os.uname().machine}, but the site's nodes are {site.arch}",
            "build on a machine like its nodes",
        )
    yield from missing_space(folder)
    if base == "machine":
        if shutil.which("mmdebstrap") is None:
            yield Fault("--base machine needs mmdebstrap", "apt-get install mmdebstrap, or leave out --base")
        elif os.geteuid() != 0:
            yield Fault("--base machine needs root", "leave out --base: the base comes from a registry")


def missing_space(folder: Path) -> Iterator[Fault]:
    folder.mkdir(parents=True, exist_ok=True)
    for each in (folder, temporary_folder(folder)):
        free = shutil.disk_usage(each).free / 1e9
        if free < BUILD_GIGABYTES:
            yield Fault(
                f"{each}: {free:.1f} GB are free, a build needs {BUILD_GIGABYTES}",
                "make room, or set APPTAINER_TMPDIR to a directory with more",
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
                f"ask an administrator to type: usermod --add-{name}s 100000-165535 {user}; or build elsewhere and copy "
                "the image here",
            )
            return
