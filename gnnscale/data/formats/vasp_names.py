"""Names of VASP's output files. Light to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TypeVar

AnyPath = TypeVar("AnyPath", bound=PurePath)


def is_vasprun(name: str) -> bool:
    return "vasprun" in name and ".xml" in name


def is_outcar(name: str) -> bool:
    return "OUTCAR" in name


def without_twins(paths: Sequence[AnyPath]) -> list[AnyPath]:
    """Return the paths without each OUTCAR that lies beside a vasprun.xml: both have the same steps."""
    folders = {path.parent for path in paths if is_vasprun(path.name)}
    return [path for path in paths if not (is_outcar(path.name) and path.parent in folders)]
