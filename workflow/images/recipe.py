"""TODO: say what a reader finds here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract import files
from gnnscale.contract.places import CONTAINERS, DATA_ROOT
from workflow.images import image_file

ARGUMENT_LINE = re.compile(r"^\s+(\w+)=(.*)$", re.M)


class Recipe(NamedTuple):
    """All that decides what an image will be, but for the versions of the system's packages."""

    definition: Path
    arguments: dict[str, str]  # of the definition
    requirements: tuple[str, ...]
    lock: str  # digest
    code: dict[str, str]
    digest: str


def read_recipe(accelerator: str, base: str) -> Recipe:
    definition = CONTAINERS / f"{accelerator}.def"
    text = definition.read_text()
    arguments = dict(ARGUMENT_LINE.findall(text[text.index("%arguments") : text.index("%files")]))
    wanted = python_requirements()
    lock = files.digest([(DATA_ROOT / "constraints.txt").read_text(), wanted, arguments["python"], accelerator])
    code, shared = image_file.code_digests(), {path.name: files.sha256(path) for path in shared_files()}
    digest = files.digest([text, shared, lock, code, base])
    return Recipe(definition, arguments, wanted, lock, code, digest)


def shared_files() -> list[Path]:
    return [CONTAINERS / name for name in ("post.sh", "identity.py", "check.py")]


def python_requirements() -> tuple[str, ...]:
    """What pyproject.toml says that gnnscale needs, MPI included; setuptools compiles the neighbour list."""
    said = tomllib.loads((DATA_ROOT / "pyproject.toml").read_text())["project"]
    return tuple(sorted([*said["dependencies"], *said["optional-dependencies"]["mpi"], "setuptools"]))
