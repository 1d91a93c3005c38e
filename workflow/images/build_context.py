"""Writes the folder that every build copies into the image, whatever program builds it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

from gnnscale.contract.places import DATA_ROOT, IS_INSTALLED, ROOT, source_file, source_files, source_name
from workflow.images.recipe import COPIED, Recipe, shared_files


def write_context(recipe: Recipe, folder: Path) -> None:
    """Write all files that a build copies into the image: the code, and everything that post.sh reads."""
    for path in source_files() + shared_files():
        copied = folder / source_name(path)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copied)
    for name in COPIED:
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
