"""The images of stages: found, judged before anything runs in them, and told apart by what is in them.

An image is a file with a record beside it, NAME.sif and NAME.json: what is in it (`id`, written by its build), and the
digest of the file itself. A file that is not as its record says is not used. workflow/images/build_image.py makes them.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gnnscale.contract import files
from gnnscale.contract.errors import Problem
from gnnscale.contract.files import sha256
from gnnscale.contract.places import ROOT
from gnnscale.schema import Spec
from workflow.config.site import SiteConfig
from workflow.images import runtimes

IMAGES = ROOT / ".cache" / "images"
ACCELERATORS = {"nvidia": "cuda", "amd": "rocm", "intel": "xpu"}
BUILD = "python workflow/run.py image build"
# In the header of a SIF: what it is, and for which processors.
MAGIC, MAGIC_AT, ARCH_AT = b"SIF_MAGIC", 32, 45
ARCHITECTURES = {b"02": "x86_64", b"04": "aarch64"}
PROBE_SECONDS = 120


class Content(Spec):
    """image.json: what containers/identity.py found in the image at the end of its build."""

    id: str
    accelerator: str
    arch: str
    python: str
    version: str
    commit: str | None
    lock: str
    recipe: str
    base: str
    code: dict[str, str]
    system: tuple[str, ...]
    packages: tuple[str, ...]


class Record(Spec):
    """Beside the file of an image, and made of nothing but the image."""

    sha256: str
    size: int
    mtime_ns: int
    content: Content


class Fault(NamedTuple):
    """Why no stage can run in the image here."""

    message: str
    hint: str


def accelerator(site: SiteConfig) -> str:
    return ACCELERATORS[site.node.gpus.vendor] if site.node.gpus else "cpu"


def architecture(site: SiteConfig) -> str:
    return site.arch or platform.machine()


def file_of(site: SiteConfig) -> Path:
    """The image that a site's stages run in; by default a link to the one that was built last."""
    given = site.container.image
    return (
        Path(os.path.expandvars(given)).expanduser()
        if given
        else IMAGES / f"{accelerator(site)}-{architecture(site)}.sif"
    )


def record_of(file: Path) -> Path:
    return file.resolve().with_suffix(".json")


def is_file(site: SiteConfig) -> bool:
    return site.container.runtime in runtimes.FILES


# ------------------------------------------------------------------------------------------------------------- code
def code_files() -> list[Path]:
    """Of this checkout: all that an image holds of it."""
    found = [p for p in (ROOT / "gnnscale").rglob("*") if p.suffix in (".py", ".cpp")] + list(
        (ROOT / "datasets").glob("*.py")
    )
    return sorted(path for path in found if path.is_file())


def code() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): sha256(path)[:16] for path in code_files()}


# -------------------------------------------------------------------------------------------------- the one to use
def resolve(site: SiteConfig, reads: list[str]) -> SiteConfig:
    """The site with its image found and its id known, for plans; `faults` says whether it can be run."""
    container = site.container
    if container.runtime == "none":
        raise Problem(
            "this site says of no program that runs images", "set container.runtime in the site's file, or --set it"
        )
    changes: dict[str, Any] = {"data": tuple(dict.fromkeys((*container.data, *reads)))}
    if is_file(site):
        file = file_of(site)
        record = known(file)
        changes |= {"image": str(file.resolve()), "digest": record.content.id}
        if container.checkout is None:
            changes["checkout"] = record.content.code != code()
        elif not container.checkout and record.content.code != code():
            raise Problem(
                f"{file}: holds other code than this checkout, whose digests are in the keys of stages",
                f"{BUILD} puts this code into one; container.checkout: true binds it over the image's",
            )
    elif not container.image or not container.digest:
        raise Problem(
            f"{container.runtime} needs container.image (what it calls the image) and container.digest (its id)",
            "the id is in /opt/gnnscale/image.json of the image, and `image inspect` shows it",
        )
    else:
        changes["checkout"] = True if container.checkout is None else container.checkout
    return site.model_copy(update={"container": container.model_copy(update=changes)})


def known(file: Path, deep: bool = False) -> Record:
    """Its record, if the file is the one that it is of. Hashed where its time is another, or if `deep`."""
    if not file.exists():
        raise Problem(f"{file}: no image there", f"make one: {BUILD}")
    try:
        record = files.read_model(record_of(file), Record)
    except files.BadFile as error:
        raise Problem(
            f"{error}: what is in the image is not known",
            "python workflow/run.py image verify looks, and writes it down",
        ) from None
    state = file.stat()
    if state.st_size != record.size:
        raise Problem(
            f"{file}: {state.st_size:,} bytes, {record.size:,} expected: cut off, or another one",
            f"copy it again, or remove it and make it: {BUILD}",
        )
    if (deep or state.st_mtime_ns != record.mtime_ns) and sha256(file) != record.sha256:
        raise Problem(
            f"{file}: not the file that {record_of(file).name} is of (same size, other content)",
            f"copy it again, or remove it and make it: {BUILD}",
        )
    return record


# ------------------------------------------------------------------------------------------------------- judgement
def check(site: SiteConfig) -> None:
    """One Problem with all that keeps stages from running in the image."""
    found = list(faults(site))
    if found:
        raise Problem(*(line for fault in found for line in (fault.message, f"  {fault.hint}")))


def faults(site: SiteConfig, deep: bool = True) -> Iterator[Fault]:
    """What can be known where the driver runs. Of a site whose modules bring the runtime, its nodes know the rest."""
    runtime = site.container.runtime
    command = {"ce": "srun"}.get(runtime, runtime)
    there = shutil.which(command) is not None
    if not there and not site.container.modules:
        yield Fault(
            f"no {command} on PATH, and container.runtime is {runtime}",
            "install it, name the modules that bring it in container.modules, or leave out --container",
        )
    if not is_file(site):
        return
    file = file_of(site)
    bad = list(file_faults(file, architecture(site), deep))
    yield from bad
    yield from exposed(file.resolve())
    if site.container.checkout:
        yield from exposed(ROOT / "gnnscale")
    if there and not bad and not site.batch:
        yield from probe(site, file)


def file_faults(file: Path, wanted: str, deep: bool) -> Iterator[Fault]:
    try:
        with open(file, "rb") as opened:
            head = opened.read(64)
    except OSError as error:
        yield Fault(f"{file}: {(error.strerror or '').lower()}", f"make one: {BUILD}")
        return
    if head[MAGIC_AT : MAGIC_AT + len(MAGIC)] != MAGIC:
        yield Fault(f"{file}: not an image of Apptainer", f"remove it, and make one: {BUILD}")
        return
    arch = ARCHITECTURES.get(head[ARCH_AT : ARCH_AT + 2], "another architecture")
    if arch != wanted:
        yield Fault(f"{file}: made for {arch}, and nodes here are {wanted}", f"make one on such a machine: {BUILD}")
        return
    try:
        record = known(file, deep)
    except Problem as problem:
        first, *rest = str(problem).splitlines()
        yield Fault(first, " ".join(rest))
        return
    if record.content.arch != wanted:
        yield Fault(f"{file}: holds programs for {record.content.arch}, nodes here are {wanted}", f"make one: {BUILD}")


def exposed(path: Path) -> Iterator[Fault]:
    """What everybody may replace is not run: the file, and all directories above it."""
    for each in (path, *path.parents):
        try:
            found = each.stat()
        except OSError:
            return
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_mode & stat.S_IWOTH and not sticky:
            yield Fault(f"{each}: everybody may write there, so nothing is run from it", f"chmod o-w {each}")


def probe(site: SiteConfig, file: Path) -> Iterator[Fault]:
    """Whether anything at all runs in it on this machine, and if not, the cause that is most likely."""
    words = runtimes.inside(site, "probe", None).prefix
    try:
        done = subprocess.run(
            [
                *words,
                "/opt/venv/bin/python",
                "-c",
                f"import json; print(json.load(open('{runtimes.HOME}/image.json'))['id'])",
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
            "python workflow/run.py image verify",
        )
        return
    said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
    yield Fault(
        f"nothing runs in {file.name} here: {said[-1].strip()}",
        namespaces() or f"try it by hand: apptainer exec {file} true; the log of the system may say more",
    )


def namespaces(sysctl: Path = Path("/proc/sys")) -> str:
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


def existing(site: SiteConfig) -> Path:
    file = file_of(site)
    if not file.exists():
        raise Problem(f"{file}: no image there", f"make one: {BUILD}")
    return file


def inspect(file: Path) -> dict[str, Any]:
    """Labels and what is in it, from the image itself. (Not by spython, which calls `singularity` and nothing else.)"""
    labels = json.loads(asked(["apptainer", "inspect", "--json", str(file)]))["data"]["attributes"]["labels"]
    read = ["apptainer", "--quiet", "exec", "--no-home", *options(), str(file), "cat", f"{runtimes.HOME}/image.json"]
    return {"labels": labels, "content": json.loads(asked(read))}


def asked(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        raise Problem(f"no {command[0]} on PATH", "install it, or load the module that brings it")
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise Problem(
            f"{' '.join(command[:3])}: {last[-1].strip()}", "the image may be damaged, or nothing runs in images here"
        )
    return done.stdout


def options() -> list[str]:
    """Root without all of its capabilities runs containers as a user does."""
    return ["--userns"] if os.geteuid() == 0 else []
