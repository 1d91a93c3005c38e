"""A tree with a shell and a description, from which a small image is made in a second; nothing of gnnscale runs in it."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from workflow.images.recipe import read_recipe

# Some are for podman-hpc, which packs an image by a script that runs inside it; `setpriv` starts stages.
PROGRAMS = ("sh", "cat", "sleep", "mkdir", "cp", "bash", "mktemp", "sed", "tar", "gzip", "rm", "setpriv")
ID = "7" * 64


def describe(**changes):
    """Return the content of image.json, which says that the image holds this checkout."""
    recipe = read_recipe("cpu", "machine")
    return {
        "id": ID,
        "accelerator": "cpu",
        "arch": os.uname().machine,
        "python": "3.11.2",
        "version": "0.1.0",
        "commit": None,
        "lock": recipe.lock,
        "recipe": recipe.digest,
        "base": "machine",
        "code": recipe.code,
        "system": ["dash 1 amd64"],
        "packages": ["nothing==1"],
    } | changes


def make_tree(folder: Path, test: str = "echo passes", **changes):
    """Write programs with their libraries, the image's Python, which is a script of the shell, and image.json."""
    for name in PROGRAMS:
        program = Path(os.path.realpath(shutil.which(name)))
        copy_file(program, folder / "usr/bin" / name)
        for word in subprocess.run(["ldd", program], capture_output=True, text=True).stdout.split():
            if word.startswith("/"):
                copy_file(Path(word), folder / word.lstrip("/"))
    for library in Path("/usr/lib").glob(f"{os.uname().machine}-*/libgcc_s.so.1"):  # which threads load as they end
        copy_file(library, folder / "usr/lib" / library.parent.name / library.name)
    for name in ("tmp", "proc", "sys", "dev", "etc", "run", "var/tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "bin").symlink_to("usr/bin")
    python, home = folder / "opt/venv/bin/python", folder / "opt/gnnscale"
    for path in (python.parent, home):
        path.mkdir(parents=True)
    python.write_text(f'#!/usr/bin/sh\n[ "$1" = -c ] && echo {ID} && exit\n{test}\n')
    python.chmod(0o755)
    (home / "image.json").write_text(json.dumps(describe(**changes)))
    return folder


def copy_file(source: Path, target: Path):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(os.path.realpath(source), target)


def import_image(program: str, tree: Path, name: str):
    """Make an image of a tree in the store of a program."""
    archive = tree.with_suffix(".tar")
    subprocess.run(["tar", "-cf", archive, "-C", tree, "."], check=True)
    done = subprocess.run([program, "import", archive, name], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
