"""Published files as they were downloaded: which there are, where in them a fault is, and how it is told.

Light to import: the planner does, on a login node, through the scripts in datasets/.
"""

from __future__ import annotations

import lzma
import pickle
import zlib
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from gnnscale.files import BadFile

if TYPE_CHECKING:
    import numpy as np

    from gnnscale.data.structure import Structure

# What the libraries that read files raise at a broken one. An OSError counts if the operating system did not say it.
BROKEN = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, OSError, RuntimeError,
    MemoryError, zlib.error, lzma.LZMAError, pickle.UnpicklingError,
)  # fmt: skip


class BadRaw(BadFile):
    """A downloaded file is not what it should be. We cannot make it again: its user must."""

    hint = "compare its size and checksum with the published ones, and download it again if they differ"


class Place:
    """Where in which file a reader is. Leaving it with an error tells that error with file and position."""

    def __init__(self, path: Path):
        self.path, self.where = path, "its beginning"

    def fault(self, what: str) -> BadRaw:
        return BadRaw(f"{self.path}: {self.where}: {what}")

    def __enter__(self) -> Place:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, BROKEN) or (isinstance(error, OSError) and error.errno is not None):
            return
        words = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, KeyError):
            words = f"{error} is missing"
        raise self.fault(f"unreadable ({words}); truncated, or not of this format") from error


def found(raw: str, patterns: tuple[str, ...], download: str) -> list[Path]:
    """The file `raw`, or the files in the folder `raw`, sorted."""
    path = Path(raw).expanduser()
    if path.is_file():
        return [path]
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; {download}")
    listed = sorted({p for pattern in patterns for p in path.rglob(pattern) if p.is_file()}, key=in_numbers)
    if not listed:
        raise FileNotFoundError(f"{path}: no {' or '.join(patterns)} in this folder; {download}")
    return listed


def in_numbers(path: Path) -> tuple:
    """2.xyz before 10.xyz."""
    stem = path.name.split(".")[0]
    return (path.parent, not stem.isdigit(), int(stem) if stem.isdigit() else 0, path.name)


def molecule(
    numbers: np.ndarray, positions: np.ndarray, energy: float, forces: np.ndarray | None, group: str, label: str
) -> Structure:
    """A structure without a cell, hence without stress; forces are NaN where there are none."""
    import numpy as np

    from gnnscale.data.structure import Structure

    return Structure(
        numbers=np.asarray(numbers, np.int64),
        positions=np.asarray(positions, np.float64),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, bool),
        energy=float(energy),
        forces=np.full((len(numbers), 3), np.nan) if forces is None else np.asarray(forces, np.float64),
        stress=np.full((3, 3), np.nan),
        group=group,
        label=label,
    )


def voigt(six: np.ndarray) -> np.ndarray:
    """(3, 3) of ASE's order: xx yy zz yz xz xy."""
    xx, yy, zz, yz, xz, xy = six
    import numpy as np

    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], np.float64)
