"""The recipe of an image: definition, requirements and code, and the digest that names the image."""

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
    """All inputs of a build except the versions of the system's packages."""

    definition: Path
    base: str  # "registry", "machine" or a file
    arguments: dict[str, str]  # of the definition
    requirements: tuple[str, ...]
    lock: str  # digest of requirements and constraints
    code: dict[str, str]
    digest: str


def read_recipe(accelerator: str, base: str) -> Recipe:
    definition = CONTAINERS / f"{accelerator}.def"
    text = definition.read_text()
    arguments = dict(ARGUMENT_LINE.findall(text[text.index("%arguments") : text.index("%files")]))
    requirements = python_requirements()
    lock = files.digest([(DATA_ROOT / "constraints.txt").read_text(), requirements, arguments["python"], accelerator])
    code, shared = image_file.code_digests(), {path.name: files.sha256(path) for path in shared_files()}
    digest = files.digest([text, shared, lock, code, base])
    return Recipe(definition, base, arguments, requirements, lock, code, digest)


def shared_files() -> list[Path]:
    return [CONTAINERS / name for name in ("post.sh", "identity.py", "check.py")]


def python_requirements() -> tuple[str, ...]:
    """List the requirements of pyproject.toml with those for MPI, and setuptools, which compiles the neighbour list."""
    project = tomllib.loads((DATA_ROOT / "pyproject.toml").read_text())["project"]
    return tuple(sorted([*project["dependencies"], *project["optional-dependencies"]["mpi"], "setuptools"]))
