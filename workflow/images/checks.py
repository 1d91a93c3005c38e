"""Checks of an image before anything runs in it: runtime, architecture, record, permissions, and a first command."""

from __future__ import annotations

import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from gnnscale.contract.command_name import command_name
from gnnscale.contract.errors import UserError, reason_of
from gnnscale.contract.places import ROOT
from workflow.config.site import SiteConfig
from workflow.images import runtimes
from workflow.images.apptainer import PROBE_SECONDS, last_line
from workflow.images.environment import IMAGE_HOME, IMAGE_PYTHON
from workflow.images.fault import Fault, raise_faults
from workflow.images.image_file import architecture, build_command, has_image_file, locate_image, read_record
from workflow.images.store_checks import find_store_faults

# The header of a SIF file: its format and its architecture.
SIF_MAGIC, MAGIC_OFFSET, ARCH_OFFSET = b"SIF_MAGIC", 32, 45
ARCH_OF_CODE = {b"02": "x86_64", b"04": "aarch64"}


def raise_if_faulty(site: SiteConfig) -> None:
    """Raise one error with all reasons why stages cannot run in the image."""
    raise_faults(find_faults(site))


def find_faults(site: SiteConfig, deep: bool = True) -> Iterator[Fault]:
    """Find the faults that can be seen from the driver's host; a runtime that modules provide may exist on nodes only."""
    runtime = site.container.runtime
    command = {"ce": "srun"}.get(runtime, runtime)
    has_command = shutil.which(command) is not None
    if not has_command and not site.container.modules:
        yield Fault(
            f"no {command} on PATH, and container.runtime is {runtime}",
            "install it, name the modules that provide it in container.modules, or leave out --container",
        )
    if site.container.checkout:
        yield from find_writable_by_all(ROOT / "gnnscale")
    if not has_image_file(site):
        yield from find_store_faults(site) if has_command else ()
        return
    file = locate_image(site)
    file_faults = list(find_file_faults(file, architecture(site), deep))
    yield from file_faults
    yield from find_writable_by_all(file.resolve())
    if has_command and not file_faults and not site.has_scheduler:
        yield from probe_image(site, file)


def find_file_faults(file: Path, wanted: str, deep: bool) -> Iterator[Fault]:
    """Find the first fault of the file itself; `wanted` is the architecture of the nodes."""
    try:
        with open(file, "rb") as opened:
            head = opened.read(64)
    except OSError as error:
        yield Fault(f"{file}: {reason_of(error)}", f"build one: {build_command()}")
        return
    if head[MAGIC_OFFSET : MAGIC_OFFSET + len(SIF_MAGIC)] != SIF_MAGIC:
        yield Fault(f"{file}: not an image of Apptainer", f"remove it, and build one: {build_command()}")
        return
    arch = ARCH_OF_CODE.get(head[ARCH_OFFSET : ARCH_OFFSET + 2], "another architecture")
    if arch != wanted:
        yield Fault(
            f"{file}: built for {arch}, but nodes here are {wanted}", f"build one on such a machine: {build_command()}"
        )
        return
    try:
        record = read_record(file, deep)
    except UserError as problem:
        yield Fault(problem.message, " ".join(problem.hints))
        return
    if record.content.arch != wanted:
        yield Fault(
            f"{file}: holds programs for {record.content.arch}, but nodes here are {wanted}",
            f"build one: {build_command()}",
        )


def find_writable_by_all(path: Path) -> Iterator[Fault]:
    """Find the file or a directory above it that every user may replace; nothing is run from there."""
    for each in (path, *path.parents):
        try:
            mode = each.stat().st_mode
        except OSError:
            return
        is_sticky = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
        if mode & stat.S_IWOTH and not is_sticky:
            yield Fault(f"{each}: every user may write there, so nothing is run from it", f"chmod o-w {each}")


def probe_image(site: SiteConfig, file: Path) -> Iterator[Fault]:
    """Run one command in the image; if that fails, name the most likely cause."""
    prefix, hint = runtimes.wrap_stage(site, "probe", None).prefix, f"try by hand: apptainer exec {file} true"
    print_id = f"import json; print(json.load(open('{IMAGE_HOME}/image.json'))['id'])"
    try:
        done = subprocess.run(
            [*prefix, IMAGE_PYTHON, "-c", print_id], capture_output=True, text=True, timeout=PROBE_SECONDS, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Fault(f"{site.container.runtime} does not start: {error}", hint)
        return
    if done.returncode:
        yield Fault(
            f"nothing runs in {file.name} here: {last_line(done.stderr)}",
            missing_namespaces() or f"{hint}; the system's log may contain more",
        )
    elif (id := done.stdout.strip()) != site.container.digest:
        yield Fault(
            f"{file}: the image has the id {id[:12]}, its record says {str(site.container.digest)[:12]}",
            f"{command_name()} image verify",
        )


def missing_namespaces(sysctl: Path = Path("/proc/sys")) -> str:
    """Return what an administrator must do before users can run containers; "" if nothing."""
    for name, least in (("user/max_user_namespaces", 1), ("kernel/unprivileged_userns_clone", 1)):
        try:
            value = int((sysctl / name).read_text())
        except (OSError, ValueError):
            continue
        if value < least:
            return f"this kernel gives users no namespaces: an administrator must set {name.replace('/', '.')} above 0"
    if not Path("/proc/self/ns/user").exists():
        return "this kernel has no user namespaces: another kernel is needed, or an Apptainer that is installed setuid"
    return ""
