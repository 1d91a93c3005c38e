"""A definition and this checkout to an image: fetched, built without privileges, named after what went into it.

Resumable, as each step keeps what it made: the wheels, the base, the image. Nothing that exists whole is made again.

    .cache/images/
      wheels-<lock>/                 what pip installs, fetched by the pip and the configuration of this machine
      base-<suite>-<arch>-<list>.sif only for `--base machine`
      cpu-x86_64-<recipe>.sif .json  the image and its record
      cpu-x86_64.sif                 a link to the one that was built last
      build.log                      all that the last build said
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract import files
from gnnscale.contract.errors import Problem
from gnnscale.contract.places import ROOT
from workflow.config.site import SiteConfig
from workflow.images import find
from workflow.images.find import Fault

CONTAINERS = ROOT / "containers"
ARGUMENT = re.compile(r"^\s+(\w+)=(.*)$", re.M)
GIGABYTES = 6  # a build needs 4.5: wheels 0.4, the tree 2.5, the image 0.5, and a second tree where it is packed
SQUASH = "-comp zstd -Xcompression-level 3"  # gzip, the default, was measured to take five times as long for 9 % less
BASE = "ca-certificates,libgomp1,python3,python3-venv,g++,libc6-dev"  # post.sh would else fetch them, into every image
STEPS = re.compile(r"gnnscale: step (\d)/(\d) (.*)")
Say = Callable[[str], None]


class Recipe(NamedTuple):
    """All that decides what an image will be, but for the versions of the system's packages."""

    definition: Path
    arguments: dict[str, str]  # of the definition
    requirements: tuple[str, ...]
    lock: str  # digest
    code: dict[str, str]
    digest: str


def recipe(accelerator: str, base: str) -> Recipe:
    definition = CONTAINERS / f"{accelerator}.def"
    text = definition.read_text()
    arguments = dict(ARGUMENT.findall(text[text.index("%arguments") : text.index("%files")]))
    wanted = requirements()
    lock = files.digest([(ROOT / "constraints.txt").read_text(), wanted, arguments["python"], accelerator])
    code, shared = find.code(), {path.name: files.sha256(path) for path in shared_files()}
    digest = files.digest([text, shared, lock, code, base])
    return Recipe(definition, arguments, wanted, lock, code, digest)


def shared_files() -> list[Path]:
    return [CONTAINERS / name for name in ("post.sh", "identity.py", "check.py")]


def requirements() -> tuple[str, ...]:
    """What pyproject.toml says that gnnscale needs, MPI included; setuptools compiles the neighbour list."""
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return tuple(sorted([*said["dependencies"], *said["optional-dependencies"]["mpi"], "setuptools"]))


# ----------------------------------------------------------------------------------------------- before it is begun
def faults(site: SiteConfig, base: str, folder: Path, user: str | None = None) -> Iterator[Fault]:
    """What keeps an image from being built here; told before anything is fetched."""
    if shutil.which("apptainer") is None:
        yield Fault(
            "no apptainer on PATH",
            "install it (apptainer.org; `tests/support/apptainer.sh install` on a Debian machine)",
        )
    user = user or pwd.getpwuid(os.geteuid()).pw_name
    yield from mapping(user)
    lack = find.namespaces()
    if lack:
        yield Fault("no user namespaces", lack)
    if find.architecture(site) != os.uname().machine:
        yield Fault(
            f"this machine is {os.uname().machine}, the site's nodes are {site.arch}", "build on one like its nodes"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, scratch(folder)):
        free = shutil.disk_usage(place).free / 1e9
        if free < GIGABYTES:
            yield Fault(
                f"{place}: {free:.1f} GB are free, a build takes {GIGABYTES}",
                "make room, or set APPTAINER_TMPDIR to a directory with more",
            )
            break
    if base == "machine":
        if shutil.which("mmdebstrap") is None:
            yield Fault("--base machine needs mmdebstrap", "apt-get install mmdebstrap, or leave out --base")
        elif os.geteuid() != 0:
            yield Fault("--base machine needs root", "leave out --base: the base comes from a registry")


def mapping(user: str, etc: Path = Path("/etc")) -> Iterator[Fault]:
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


def scratch(folder: Path) -> Path:
    return Path(os.environ.get("APPTAINER_TMPDIR") or folder)


# --------------------------------------------------------------------------------------------------------- building
def build(site: SiteConfig, base: str, say: Say) -> Path:
    """The image of this site and this checkout, made if it is not there; and the link to it set."""
    link = find.file_of(site)
    folder, name = link.parent, find.accelerator(site)
    made = recipe(name, base)
    target = folder / f"{link.name.removesuffix('.sif')}-{made.digest[:12]}.sif"
    if whole(target):
        say(f"{target}: is there already")
    else:
        found = list(faults(site, base, folder))
        if found:
            raise Problem(*(line for fault in found for line in (fault.message, f"  {fault.hint}")))
        with alone(folder), tempfile.TemporaryDirectory(prefix="build-", dir=scratch(folder)) as work:
            log = folder / "build.log"
            log.write_text("")
            wheels = fetch(made, folder, log, say)
            given = base_arguments(made, base, folder, log, say)
            assemble(made, given, base, wheels, target, Path(work), log, say)
    if link != target:
        beside = link.with_name(f".{link.name}.tmp")
        beside.unlink(missing_ok=True)
        beside.symlink_to(target.name)
        os.replace(beside, link)
    return link


def whole(target: Path) -> bool:
    try:
        find.known(target, deep=True)
    except Problem:
        return False
    return True


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One build at a time; what a killed one left is removed."""
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Problem(f"{folder}: an image is being built here already", "wait for it") from None
        for left in [*folder.glob("build-*"), *folder.glob("*.part")]:
            if left.name != "build.log":
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
        yield


def fetch(made: Recipe, folder: Path, log: Path, say: Say) -> Path:
    """Everything that pip will install, fetched and if need be made into wheels out here, where pip is configured."""
    wheels = folder / f"wheels-{made.lock[:12]}"
    if (wheels / "complete").exists():
        say(f"wheels: there already, {count(wheels)}")
        return wheels
    interpreter = interpreter_of(made.arguments["python"])
    wheels.mkdir(exist_ok=True)
    listed = wheels / "requirements.txt"
    listed.write_text("\n".join(made.requirements) + "\n")
    command = [
        interpreter,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "--wheel-dir",
        str(wheels),
        "--cache-dir",
        str(folder / "pip"),
        "--constraint",
        str(ROOT / "constraints.txt"),
        "--requirement",
        str(listed),
    ]
    run(command, log, "wheels, fetched by pip", say, env={"DS_BUILD_OPS": "0"})
    files.write(wheels / "complete", "")
    say(f"wheels: {count(wheels)}")
    return wheels


def count(wheels: Path) -> str:
    found = list(wheels.glob("*.whl"))
    return f"{len(found)} packages, {sum(path.stat().st_size for path in found) / 1e6:.0f} MB"


def interpreter_of(version: str) -> str:
    """Of the image's minor version: pip fetches for the Python that runs it."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    found = shutil.which(f"python{version}")
    if found is None:
        raise Problem(
            f"the image has Python {version}, and no python{version} is here to fetch its packages with",
            f"install python{version}",
        )
    return found


def base_arguments(made: Recipe, base: str, folder: Path, log: Path, say: Say) -> dict[str, str]:
    """What the definition begins with: its own choice in a registry, a file, or one made of this machine's packages."""
    if base == "registry":
        return {}
    if base != "machine":
        return {"bootstrap": "localimage", "base": str(Path(base).resolve())}
    said = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = said["VERSION_CODENAME"].strip('"')
    target = folder / f"base-{suite}-{os.uname().machine}-{files.digest(BASE)[:8]}.sif"
    if not target.exists():
        with tempfile.TemporaryDirectory(prefix="build-", dir=scratch(folder)) as work:
            os.chmod(work, 0o755)
            tree = Path(work) / "root"
            sources = [
                str(p)
                for p in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*")))
                if p.suffix in (".list", ".sources") and p.exists() and p.stat().st_size
            ]
            run(
                ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={BASE}", suite, str(tree), *sources],
                log,
                f"base: Debian {suite}, of the packages that this machine uses",
                say,
            )
            for path in [
                *(tree / "dev").iterdir(),
                *(tree / "var/cache/apt").iterdir(),
                *(tree / "var/lib/apt/lists").iterdir(),
            ]:
                shutil.rmtree(
                    path
                ) if path.is_dir() and not path.is_symlink() else path.unlink()  # unsquashfs makes no devices
            run(
                ["apptainer", "build", "--force", f"{target}.part", str(tree)],
                log,
                "base: packed",
                say,
                env=environment(folder),
            )
        os.replace(f"{target}.part", target)
    return {"bootstrap": "localimage", "base": str(target)}


def assemble(
    made: Recipe, given: dict[str, str], base: str, wheels: Path, target: Path, work: Path, log: Path, say: Say
) -> None:
    """The definition, carried out, and a record beside what comes of it."""
    os.chmod(work, 0o755)
    context(made, base, work / "context")
    part = target.with_name(target.name + ".part")
    (work / "tmp").mkdir(mode=0o1777)
    # A build would else have this machine's own /tmp, and see, or spoil, what others have there.
    binds = ["--bind", f"{wheels}:/mnt", "--bind", f"{work / 'tmp'}:/tmp"]
    command = ["apptainer", "build", "--force", "--fakeroot", "--notest", *binds]
    for name, value in given.items():
        command += ["--build-arg", f"{name}={value}"]
    command += [str(part), str(made.definition)]
    run(command, log, "image", say, env=environment(scratch(target.parent)), cwd=work / "context")
    # Not while it is built, but as it will be run: packed, read-only, without privileges.
    run(["apptainer", "test", "--cleanenv", "--no-home", *find.options(), str(part)], log, "its own test", say)
    write_record(part, target)
    os.replace(part, target)
    state = target.stat()
    say(f"{target}: {state.st_size / 1e6:.0f} MB, id {find.known(target).content.id[:12]}")


def write_record(file: Path, target: Path) -> None:
    """Before the file has its name, so an image that has one has its record too."""
    content = find.Content.model_validate(find.inspect(file)["content"])
    state = file.stat()
    record = find.Record(sha256=files.sha256(file), size=state.st_size, mtime_ns=state.st_mtime_ns, content=content)
    files.write_model(target.with_suffix(".json"), record)


def context(made: Recipe, base: str, place: Path) -> None:
    """What %files copies: the code, and all that post.sh reads."""
    for path in find.code_files() + shared_files():
        copied = place / path.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copied)
    for name in ("constraints.txt", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, place / name)
    (place / "README.md").write_text("gnnscale\n")  # pyproject.toml wants one
    (place / "requirements.txt").write_text("\n".join(made.requirements) + "\n")
    said = {
        "version": version(),
        "commit": commit(),
        "lock": made.lock,
        "recipe": made.digest,
        "code": made.code,
        "base": base,
    }
    (place / "recipe.json").write_text(json.dumps(said, indent=1))


def version() -> str:
    return re.search(r'__version__ = "(.*)"', (ROOT / "gnnscale" / "__init__.py").read_text())[1]


def commit() -> str | None:
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None


def environment(place: Path) -> dict[str, str]:
    return {
        "APPTAINER_TMPDIR": str(place),
        "APPTAINER_CACHEDIR": os.environ.get("APPTAINER_CACHEDIR") or str(place / "layers"),
        "APPTAINER_MKSQUASHFS_ARGS": os.environ.get("APPTAINER_MKSQUASHFS_ARGS", SQUASH),
    }


def run(
    command: list[str], log: Path, what: str, say: Say, env: dict[str, str] | None = None, cwd: Path | None = None
) -> None:
    """To its end, with a line for each step that it announces; what it says goes into the log, and its last words out."""
    began, lines = time.monotonic(), []
    say(f"{what} ...")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env=os.environ | (env or {}),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        with open(log, "a") as kept:
            for line in process.stdout:
                kept.write(line)
                lines = [*lines[-11:], line.rstrip()]
                step = STEPS.search(line)
                if step:
                    say(f"  {step[1]}/{step[2]} {step[3]}, after {time.monotonic() - began:.0f} s")
        code = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if code:
        raise Problem(
            f"{what}: {Path(command[0]).name} ended with code {code}",
            *(f"    | {line}" for line in lines if line),
            f"all it said: {log}; what was made so far is kept, so the same command goes on",
        )
    say(f"{what}: done in {time.monotonic() - began:.0f} s")


# ---------------------------------------------------------------------------------------------- verify, and elsewhere
def verify(site: SiteConfig, say: Say) -> None:
    """Every byte, what the image says of itself, and whether it is what this checkout would build now."""
    file = find.existing(site)
    if not find.record_of(file).exists():
        write_record(file.resolve(), file.resolve())
        say(f"{find.record_of(file)}: written, as there was none")
    find.check(find.resolve(site, []))
    content = find.known(file).content
    said = find.Content.model_validate(find.inspect(file)["content"])
    if said != content:
        raise Problem(
            f"{file}: says of itself what its record does not", f"remove {find.record_of(file)}, and verify again"
        )
    now = recipe(find.accelerator(site), content.base)
    say(f"{file}: whole, for {content.arch}, {content.accelerator}, id {content.id[:12]}")
    if content.lock != now.lock:
        say(f"its packages are those of another constraints.txt or pyproject.toml; {find.BUILD} makes one of these")
    changed = sum(now.code.get(name) != content.code.get(name) for name in now.code.keys() | content.code.keys())
    say(
        f"{changed} files of code differ here; they are bound over the image's"
        if changed
        else "its code is this checkout's"
    )


def push(site: SiteConfig, to: str, say: Say) -> None:
    """The image and its record to a directory that another site sees, or to a registry."""
    file = find.existing(site).resolve()
    record = find.known(file, deep=True)
    if "://" in to:
        run(["apptainer", "push", str(file), to], file.parent / "build.log", f"{file.name} to {to}", say)
        return
    target = Path(to).expanduser() / file.name
    if not target.parent.is_dir():
        raise Problem(f"{target.parent}: no directory", "make it, or name a registry: oras://HOST/NAME:TAG")
    part = target.with_name(target.name + ".part")
    shutil.copyfile(file, part)
    if files.sha256(part) != record.sha256:
        raise Problem(f"{part}: not the same as {file} when it was read again", "try again; the disk may be failing")
    state = part.stat()
    files.write_model(target.with_suffix(".json"), record.model_copy(update={"mtime_ns": state.st_mtime_ns}))
    os.replace(part, target)
    say(f"{target}: {record.size / 1e6:.0f} MB; there: --container --set container.image={target}")
