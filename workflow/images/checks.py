"""TODO: say what a reader finds here."""

from __future__ import annotations

import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract.command_name import command_name
from gnnscale.contract.errors import UserError, reason_of
from gnnscale.contract.places import ROOT
from workflow.config.site import SiteConfig
from workflow.images import environment, runtimes
from workflow.images.apptainer import PROBE_SECONDS
from workflow.images.image_file import architecture, build_command, has_image_file, image_file, read_record

# In the header of a SIF: what it is, and for which processors.
MAGIC, MAGIC_AT, ARCH_AT = b"SIF_MAGIC", 32, 45


ARCHITECTURES = {b"02": "x86_64", b"04": "aarch64"}


class Fault(NamedTuple):
    """Why no stage can run in the image here."""

    message: str
    hint: str


def raise_if_faulty(site: SiteConfig) -> None:
    """One Problem with all that keeps stages from running in the image."""
    found = list(find_faults(site))
    if found:
        raise UserError("\n".join(f"{fault.message}\n  {fault.hint}" for fault in found))


def find_faults(site: SiteConfig, deep: bool = True) -> Iterator[Fault]:
    """What can be known where the driver runs. Of a site whose modules bring the runtime, its nodes know the rest."""
    runtime = site.container.runtime
    command = {"ce": "srun"}.get(runtime, runtime)
    there = shutil.which(command) is not None
    if not there and not site.container.modules:
        yield Fault(
            f"no {command} on PATH, and container.runtime is {runtime}",
            "install it, name the modules that bring it in container.modules, or leave out --container",
        )
    if not has_image_file(site):
        return
    file = image_file(site)
    bad = list(find_file_faults(file, architecture(site), deep))
    yield from bad
    yield from find_writable_by_all(file.resolve())
    if site.container.checkout:
        yield from find_writable_by_all(ROOT / "gnnscale")
    if there and not bad and not site.has_scheduler:
        yield from probe_image(site, file)


def find_file_faults(file: Path, wanted: str, deep: bool) -> Iterator[Fault]:
    try:
        with open(file, "rb") as opened:
            head = opened.read(64)
    except OSError as error:
        yield Fault(f"{file}: {reason_of(error)}", f"make one: {build_command()}")
        return
    if head[MAGIC_AT : MAGIC_AT + len(MAGIC)] != MAGIC:
        yield Fault(f"{file}: not an image of Apptainer", f"remove it, and make one: {build_command()}")
        return
    arch = ARCHITECTURES.get(head[ARCH_AT : ARCH_AT + 2], "another architecture")
    if arch != wanted:
        yield Fault(
            f"{file}: made for {arch}, and nodes here are {wanted}", f"make one on such a machine: {build_command()}"
        )
        return
    try:
        record = read_record(file, deep)
    except UserError as problem:
        first, *rest = str(problem).splitlines()
        yield Fault(first, " ".join(rest))
        return
    if record.content.arch != wanted:
        yield Fault(
            f"{file}: holds programs for {record.content.arch}, nodes here are {wanted}", f"make one: {build_command()}"
        )


def find_writable_by_all(path: Path) -> Iterator[Fault]:
    """What everybody may replace is not run: the file, and all directories above it."""
    for each in (path, *path.parents):
        try:
            found = each.stat()
        except OSError:
            return
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_mode & stat.S_IWOTH and not sticky:
            yield Fault(f"{each}: everybody may write there, so nothing is run from it", f"chmod o-w {each}")


def probe_image(site: SiteConfig, file: Path) -> Iterator[Fault]:
    """Whether anything at all runs in it on this machine, and if not, the cause that is most likely."""
    words = runtimes.wrap_stage(site, "probe", None).prefix
    try:
        done = subprocess.run(
            [
                *words,
                "/opt/venv/bin/python",
                "-c",
                f"import json; print(json.load(open('{environment.IMAGE_HOME}/image.json'))['id'])",
            ],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Fault(
            f"{site.container.runtime} does not start: {error}", "try it by hand: apptainer exec " + str(file) + " true"
        )
        return
    if done.returncode == 0 and done.stdout.strip() == site.container.digest:
        return
    if done.returncode == 0:
        yield Fault(
            f"{file}: says of itself that it is {done.stdout.strip()[:12]}, its record {str(site.container.digest)[:12]}",
            f"{command_name()} image verify",
        )
        return
    said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
    yield Fault(
        f"nothing runs in {file.name} here: {said[-1].strip()}",
        missing_namespaces() or f"try it by hand: apptainer exec {file} true; the log of the system may say more",
    )


def missing_namespaces(sysctl: Path = Path("/proc/sys")) -> str:
    """What an administrator must do before a user may run containers, or ""."""
    for name, least in (("user/max_user_namespaces", 1), ("kernel/unprivileged_userns_clone", 1)):
        try:
            value = int((sysctl / name).read_text())
        except (OSError, ValueError):
            continue
        if value < least:
            return f"this kernel gives users no namespaces: an administrator sets {name.replace('/', '.')} above 0"
    if not Path("/proc/self/ns/user").exists():
        return "this kernel has no user namespaces: it takes another kernel, or an Apptainer that is installed setuid"
    return ""
