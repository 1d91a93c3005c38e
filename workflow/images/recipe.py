"""The recipe of an image: what is built in which steps, and the digest that names the image.

There is one recipe for all runtimes. Apptainer and Singularity read NAME.def, all others oci.Containerfile: both begin with
the base that the head of NAME.def chooses, copy the same folder and run the same post.sh.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract import files
from gnnscale.contract.places import CONTAINERS, DATA_ROOT
from workflow.images import image_file

CONTAINERFILE = "oci.Containerfile"
COPIED = ("constraints.txt", "setup.py", "pyproject.toml")  # from the top of a checkout into the image
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

    @property
    def accelerator(self) -> str:
        return self.arguments["accelerator"]


def read_recipe(accelerator: str, base: str) -> Recipe:
    definition = CONTAINERS / f"{accelerator}.def"
    text = definition.read_text()
    arguments = dict(ARGUMENT_LINE.findall(text[text.index("%arguments") : text.index("%files")]))
    requirements = python_requirements()
    lock = files.digest([(DATA_ROOT / "constraints.txt").read_text(), requirements, arguments["python"], accelerator])
    code = image_file.code_digests()
    read = [CONTAINERS / CONTAINERFILE, *shared_files(), *(DATA_ROOT / name for name in COPIED)]
    digest = files.digest([text, {path.name: files.sha256(path) for path in read}, lock, code, base])
    return Recipe(definition, base, arguments, requirements, lock, code, digest)


def shared_files() -> list[Path]:
    return [CONTAINERS / name for name in ("post.sh", "identity.py", "check.py")]


def python_requirements() -> tuple[str, ...]:
    """List the requirements of pyproject.toml with those for MPI, and setuptools, which compiles the neighbour list."""
    project = tomllib.loads((DATA_ROOT / "pyproject.toml").read_text())["project"]
    return tuple(sorted([*project["dependencies"], *project["optional-dependencies"]["mpi"], "setuptools"]))
