"""Builds the image of a site from a definition and this checkout, without privileges; its name holds a digest of both.

A build can be resumed: each step keeps its product (the wheels, the base, the image), and nothing complete is made again.

    .cache/images/
      wheels-<lock>/                 Python packages, fetched by the pip and the configuration of this machine
      base-<suite>-<arch>-<list>.sif only for `--base machine`
      cpu-x86_64-<recipe>.sif .json  the image and its record
      cpu-x86_64.sif                 a link to the image that was built last
      build.log                      the output of the last build
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gnnscale.contract.errors import UserError
from gnnscale.contract.places import DATA_ROOT, IS_INSTALLED, ROOT, source_file, source_files, source_name
from workflow.config.site import SiteConfig
from workflow.images.apptainer import build_environment, temporary_folder, user_namespace_flags
from workflow.images.base_image import base_arguments
from workflow.images.build_checks import find_build_faults
from workflow.images.checks import raise_faults
from workflow.images.command_log import CommandLog, Notify
from workflow.images.image_file import accelerator, locate_image, read_record, write_record
from workflow.images.recipe import Recipe, read_recipe, shared_files
from workflow.images.wheels import fetch_wheels


def build(site: SiteConfig, base: str, notify: Notify) -> Path:
    """Build the image of this site and this checkout unless there is one, and let the site's link point to it."""
    link = locate_image(site)
    folder, recipe = link.parent, read_recipe(accelerator(site), base)
    target = folder / f"{link.name.removesuffix('.sif')}-{recipe.digest[:12]}.sif"
    if is_whole(target):
        notify(f"{target}: present")
    else:
        raise_faults(find_build_faults(site, base, folder))
        with hold_build_lock(folder):
            make_image(recipe, target, CommandLog(folder / "build.log", notify))
    if link != target:
        temporary = link.with_name(f".{link.name}.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        os.replace(temporary, link)
    return link


def is_whole(target: Path) -> bool:
    try:
        read_record(target, deep=True)
    except UserError:
        return False
    return True


@contextmanager
def hold_build_lock(folder: Path) -> Iterator[None]:
    """Allow one build at a time, and remove what a killed one has left."""
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: another build is running here", "wait for it") from None
        for path in [*folder.glob("build-*"), *folder.glob("*.part")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        yield


def make_image(recipe: Recipe, target: Path, log: CommandLog) -> None:
    """Fetch the packages, run the definition, test the image, and write it with its record."""
    folder = target.parent
    log.path.write_text("")
    wheels = fetch_wheels(recipe, folder, log)
    arguments = base_arguments(recipe.base, folder, log)
    part = target.with_name(target.name + ".part")
    with tempfile.TemporaryDirectory(prefix="build-", dir=temporary_folder(folder)) as work:
        run_definition(recipe, arguments, wheels, part, Path(work), log)
    # The test sees the image as it will run: packed, read-only, without privileges.
    log.run(["apptainer", "test", "--cleanenv", "--no-home", *user_namespace_flags(), str(part)], "test of the image")
    write_record(part, target)
    os.replace(part, target)
    log.notify(f"{target}: {target.stat().st_size / 1e6:.0f} MB, id {read_record(target).content.id[:12]}")


def run_definition(
    recipe: Recipe, arguments: dict[str, str], wheels: Path, part: Path, work: Path, log: CommandLog
) -> None:
    """Build the image from its definition in a work directory of its own."""
    os.chmod(work, 0o755)
    context = work / "context"
    write_context(recipe, context)
    (work / "tmp").mkdir(mode=0o1777)
    # Without this bind the build would have the /tmp of this machine, and see or damage the files of others.
    binds = ["--bind", f"{wheels}:/mnt", "--bind", f"{work / 'tmp'}:/tmp"]
    command = ["apptainer", "build", "--force", "--fakeroot", "--notest", *binds]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    env = build_environment(temporary_folder(part.parent))
    log.run([*command, str(part), str(recipe.definition)], "image", env=env, cwd=context)


def write_context(recipe: Recipe, folder: Path) -> None:
    """Write what the definition copies (%files): the code, and everything that post.sh reads."""
    for path in source_files() + shared_files():
        copied = folder / source_name(path)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copied)
    for name in ("constraints.txt", "setup.py", "pyproject.toml"):
        shutil.copy(DATA_ROOT / name, folder / name)
    (folder / "README.md").write_text("gnnscale\n")  # pyproject.toml names one
    (folder / "requirements.txt").write_text("\n".join(recipe.requirements) + "\n")
    content = {
        "version": package_version(),
        "commit": current_commit(),
        "lock": recipe.lock,
        "recipe": recipe.digest,
        "code": recipe.code,
        "base": recipe.base,
    }
    (folder / "recipe.json").write_text(json.dumps(content, indent=1))


def package_version() -> str:
    """Read the version of gnnscale from its source, as workflow/ imports only its contract."""
    found = re.search(r'__version__ = "(.*)"', source_file("gnnscale/__init__.py").read_text())
    assert found is not None, "gnnscale/__init__.py has no __version__"
    return found[1]


def current_commit() -> str | None:
    if IS_INSTALLED:  # a repository around site-packages would be another one
        return None
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None
