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
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gnnscale import __version__
from gnnscale.contract import files
from gnnscale.contract.errors import UserError
from gnnscale.contract.places import DATA_ROOT, IS_INSTALLED, ROOT, source_files, source_name
from workflow.config.site import SiteConfig
from workflow.images import apptainer, image_file
from workflow.images.build_checks import find_build_faults, temporary_folder
from workflow.images.logged_command import Notify, run_logged
from workflow.images.recipe import Recipe, read_recipe, shared_files
from workflow.images.verify_image import write_record

SQUASHFS_OPTIONS = (
    "-comp zstd -Xcompression-level 3"  # gzip, the default, was measured to take five times as long for 9 % less
)
BASE_PACKAGES = (
    "ca-certificates,libgomp1,python3,python3-venv,g++,libc6-dev"  # post.sh would else fetch them, into every image
)


# ----------------------------------------------------------------------------------------------- before it is begun


# --------------------------------------------------------------------------------------------------------- building
def build(site: SiteConfig, base: str, say: Notify) -> Path:
    """The image of this site and this checkout, made if it is not there; and the link to it set."""
    link = image_file.image_file(site)
    folder, name = link.parent, image_file.accelerator(site)
    made = read_recipe(name, base)
    target = folder / f"{link.name.removesuffix('.sif')}-{made.digest[:12]}.sif"
    if is_whole(target):
        say(f"{target}: is there already")
    else:
        found = list(find_build_faults(site, base, folder))
        if found:
            raise UserError("\n".join(f"{fault.message}\n  {fault.hint}" for fault in found))
        with (
            hold_build_lock(folder),
            tempfile.TemporaryDirectory(prefix="build-", dir=temporary_folder(folder)) as work,
        ):
            log = folder / "build.log"
            log.write_text("")
            wheels = fetch_wheels(made, folder, log, say)
            given = base_arguments(made, base, folder, log, say)
            assemble_image(made, given, base, wheels, target, Path(work), log, say)
    if link != target:
        beside = link.with_name(f".{link.name}.tmp")
        beside.unlink(missing_ok=True)
        beside.symlink_to(target.name)
        os.replace(beside, link)
    return link


def is_whole(target: Path) -> bool:
    try:
        image_file.read_record(target, deep=True)
    except UserError:
        return False
    return True


@contextmanager
def hold_build_lock(folder: Path) -> Iterator[None]:
    """One build at a time; what a killed one left is removed."""
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: an image is being built here already", "wait for it") from None
        for left in [*folder.glob("build-*"), *folder.glob("*.part")]:
            if left.name != "build.log":
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
        yield


def fetch_wheels(made: Recipe, folder: Path, log: Path, say: Notify) -> Path:
    """Everything that pip will install, fetched and if need be made into wheels out here, where pip is configured."""
    wheels = folder / f"wheels-{made.lock[:12]}"
    if (wheels / "complete").exists():
        say(f"wheels: there already, {describe_wheels(wheels)}")
        return wheels
    interpreter = find_interpreter(made.arguments["python"])
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
        str(DATA_ROOT / "constraints.txt"),
        "--requirement",
        str(listed),
    ]
    run_logged(command, log, "wheels, fetched by pip", say, env={"DS_BUILD_OPS": "0"})
    files.write(wheels / "complete", "")
    say(f"wheels: {describe_wheels(wheels)}")
    return wheels


def describe_wheels(wheels: Path) -> str:
    found = list(wheels.glob("*.whl"))
    return f"{len(found)} packages, {sum(path.stat().st_size for path in found) / 1e6:.0f} MB"


def find_interpreter(version: str) -> str:
    """Of the image's minor version: pip fetches for the Python that runs it."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    found = shutil.which(f"python{version}")
    if found is None:
        raise UserError(
            f"the image has Python {version}, and no python{version} is here to fetch its packages with",
            f"install python{version}",
        )
    return found


def base_arguments(made: Recipe, base: str, folder: Path, log: Path, say: Notify) -> dict[str, str]:
    """What the definition begins with: its own choice in a registry, a file, or one made of this machine's packages."""
    if base == "registry":
        return {}
    if base != "machine":
        return {"bootstrap": "localimage", "base": str(Path(base).resolve())}
    said = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = said["VERSION_CODENAME"].strip('"')
    target = folder / f"base-{suite}-{os.uname().machine}-{files.digest(BASE_PACKAGES)[:8]}.sif"
    if not target.exists():
        with tempfile.TemporaryDirectory(prefix="build-", dir=temporary_folder(folder)) as work:
            os.chmod(work, 0o755)
            tree = Path(work) / "root"
            sources = [
                str(p)
                for p in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*")))
                if p.suffix in (".list", ".sources") and p.exists() and p.stat().st_size
            ]
            run_logged(
                [
                    "mmdebstrap",
                    "--quiet",
                    "--variant=minbase",
                    f"--include={BASE_PACKAGES}",
                    suite,
                    str(tree),
                    *sources,
                ],
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
            run_logged(
                ["apptainer", "build", "--force", f"{target}.part", str(tree)],
                log,
                "base: packed",
                say,
                env=apptainer_environment(folder),
            )
        os.replace(f"{target}.part", target)
    return {"bootstrap": "localimage", "base": str(target)}


def assemble_image(
    made: Recipe, given: dict[str, str], base: str, wheels: Path, target: Path, work: Path, log: Path, say: Notify
) -> None:
    """The definition, carried out, and a record beside what comes of it."""
    os.chmod(work, 0o755)
    write_context(made, base, work / "context")
    part = target.with_name(target.name + ".part")
    (work / "tmp").mkdir(mode=0o1777)
    # A build would else have this machine's own /tmp, and see, or spoil, what others have there.
    binds = ["--bind", f"{wheels}:/mnt", "--bind", f"{work / 'tmp'}:/tmp"]
    command = ["apptainer", "build", "--force", "--fakeroot", "--notest", *binds]
    for name, value in given.items():
        command += ["--build-arg", f"{name}={value}"]
    command += [str(part), str(made.definition)]
    run_logged(
        command, log, "image", say, env=apptainer_environment(temporary_folder(target.parent)), cwd=work / "context"
    )
    # Not while it is built, but as it will be run: packed, read-only, without privileges.
    run_logged(
        ["apptainer", "test", "--cleanenv", "--no-home", *apptainer.user_namespace_flags(), str(part)],
        log,
        "its own test",
        say,
    )
    write_record(part, target)
    os.replace(part, target)
    state = target.stat()
    say(f"{target}: {state.st_size / 1e6:.0f} MB, id {image_file.read_record(target).content.id[:12]}")


def write_context(made: Recipe, base: str, place: Path) -> None:
    """What %files copies: the code, and all that post.sh reads."""
    for path in source_files() + shared_files():
        copied = place / source_name(path)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copied)
    for name in ("constraints.txt", "setup.py", "pyproject.toml"):
        shutil.copy(DATA_ROOT / name, place / name)
    (place / "README.md").write_text("gnnscale\n")  # pyproject.toml wants one
    (place / "requirements.txt").write_text("\n".join(made.requirements) + "\n")
    said = {
        "version": __version__,
        "commit": current_commit(),
        "lock": made.lock,
        "recipe": made.digest,
        "code": made.code,
        "base": base,
    }
    (place / "recipe.json").write_text(json.dumps(said, indent=1))


def current_commit() -> str | None:
    if IS_INSTALLED:  # a repository around site-packages would be another one
        return None
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None


def apptainer_environment(place: Path) -> dict[str, str]:
    return {
        "APPTAINER_TMPDIR": str(place),
        "APPTAINER_CACHEDIR": os.environ.get("APPTAINER_CACHEDIR") or str(place / "layers"),
        "APPTAINER_MKSQUASHFS_ARGS": os.environ.get("APPTAINER_MKSQUASHFS_ARGS", SQUASHFS_OPTIONS),
    }


# ---------------------------------------------------------------------------------------------- verify, and elsewhere
