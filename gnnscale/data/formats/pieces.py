"""Pieces of a published dataset that can be read independently of each other.

Light to import: the planner imports it, on a login node, through the scripts in datasets/.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gnnscale.data.formats.raw_files import name_below

if TYPE_CHECKING:  # it needs NumPy
    from gnnscale.atoms.structure import SplitName

ROWS_PER_PIECE = 1024  # rows of a database, or small files

SkipStructure = Callable[[str], None]  # called with the reason, once for each structure that is left out


class Piece(NamedTuple):
    """A part of a dataset that can be read without the others: a file, a group in it, a range of its rows or bytes.

    Which pieces there are, and in which order, follows from the files and the options alone.
    """

    name: str  # the file below `raw` and the part of it; lists of quarantined structures call this the unit
    structures: float  # expected; work is divided by it
    path: Path = Path()
    key: str = ""  # of a group in the file
    span: tuple[int, int] | None = None  # first and end of a range of rows, bytes or molecules
    split: SplitName | None = None  # where the name of the file says it

    @property
    def bounds(self) -> tuple[int, int]:
        """The span of a piece that always has one."""
        assert self.span is not None, f"{self.name} has no span"
        return self.span


def pieces_by_range(raw: str, path: Path, count: int, what: str, size: int = ROWS_PER_PIECE) -> list[Piece]:
    """Divide rows 0 to `count` of a file into pieces of at most `size` rows."""
    ends = [*range(0, count, size), count]
    name = name_below(raw, path)
    return [Piece(f"{name}: {what} {a} to {b - 1}", b - a, path, span=(a, b)) for a, b in pairwise(ends)]
