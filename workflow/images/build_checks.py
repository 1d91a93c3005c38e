"""TODO: say what a reader finds here."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path

from workflow.config.site import SiteConfig
from workflow.images import checks, image_file
from workflow.images.checks import Fault

BUILD_GIGABYTES = 6  # a build needs 4.5: wheels 0.4, the tree 2.5, the image 0.5, and a second tree where it is packed


def find_build_faults(site: SiteConfig, base: str, folder: Path, user: str | None = None) -> Iterator[Fault]:
    """What keeps an image from being built here; told before anything is fetched."""
    if shutil.which("apptainer") is None:
        yield Fault(
            "no apptainer on PATH",
            "install it (apptainer.org; `tests/support/apptainer.sh install` on a Debian machine)",
        )
    user = user or pwd.getpwuid(os.geteuid()).pw_name
    yield from missing_subordinate_ids(user)
    lack = checks.missing_namespaces()
    if lack:
        yield Fault("no user namespaces", lack)
    if image_file.architecture(site) != os.uname().machine:
        yield Fault(
            f"this machine is {os.uname().machine}, the site's nodes are {site.arch}", "build on one like its nodes"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, temporary_folder(folder)):
        free = shutil.disk_usage(place).free / 1e9
        if free < BUILD_GIGABYTES:
            yield Fault(
                f"{place}: {free:.1f} GB are free, a build takes {BUILD_GIGABYTES}",
                "make room, or set APPTAINER_TMPDIR to a directory with more",
            )
            break
    if base == "machine":
        if shutil.which("mmdebstrap") is None:
            yield Fault("--base machine needs mmdebstrap", "apt-get install mmdebstrap, or leave out --base")
        elif os.geteuid() != 0:
            yield Fault("--base machine needs root", "leave out --base: the base comes from a registry")


def missing_subordinate_ids(user: str, etc: Path = Path("/etc")) -> Iterator[Fault]:
    """Files of several owners, as a system has them, need ids that are this user's to give."""
    for name in ("subuid", "subgid"):
        try:
            lines = (etc / name).read_text().splitlines()
        except OSError:
            lines = []
        if not any(line.split(":")[0] in (user, str(os.geteuid())) for line in lines):
            yield Fault(
                f"/etc/{name} gives {user} no subordinate ids, which an unprivileged build (fakeroot) takes",
                f"an administrator types: usermod --add-{name}s 100000-165535 {user}; or build elsewhere and copy "
                "the image here",
            )
            return


def temporary_folder(folder: Path) -> Path:
    return Path(os.environ.get("APPTAINER_TMPDIR") or folder)
