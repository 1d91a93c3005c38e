"""Published files as they were downloaded: which there are, where in them a fault is, and how it is told.

Light to import: the planner does, on a login node, through the scripts in datasets/.
"""

from __future__ import annotations

import lzma
import pickle
import re
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from gnnscale.contract.files import BadFile

if TYPE_CHECKING:
    pass

# What the libraries that read files raise at a broken one. An OSError counts if the operating system did not say it.
BROKEN = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    OSError,
    RuntimeError,
    MemoryError,
    zlib.error,
    lzma.LZMAError,
    pickle.UnpicklingError,
)


UNLABELLED = "published without labels"
FOLDERS = {  # of the Open Catalyst Project -> split; what was rattled or heated is there to train with
    "train": "train",
    "rattled": "train",
    "md": "train",
    "val_id": "validation",
    "val_ood": "test",
    "test_id": UNLABELLED,
    "test_ood": UNLABELLED,
}
ROWS = 1024  # keys of a database, or small files, in one unit


class Unit(NamedTuple):
    """A piece of a dataset that can be read without the others: a file, a group of one, a range of its keys or bytes.

    Which units there are, and in which order, follows from the files and options alone.
    """

    name: str  # the file below `raw`, and which part of it: what people and lists of bad structures call it
    structures: float  # about how many; work is divided by it
    path: Path = Path()
    key: str = ""  # of a group in the file
    span: tuple[int, int] | None = None  # first and end of a range of keys, bytes or molecules


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


def below(raw: str, path: Path) -> str:
    """What a file is called, wherever the folder `raw` lies."""
    above = Path(raw).expanduser()
    return path.relative_to(above).as_posix() if above != path and above in path.parents else path.name


def ranges(raw: str, path: Path, count: int, what: str, size: int = ROWS) -> list[Unit]:
    """Keys 0 to `count` of a file, in units of at most `size`."""
    cuts = [*range(0, count, size), count]
    name = below(raw, path)
    return [Unit(f"{name}: {what} {a} to {b - 1}", b - a, path, span=(a, b)) for a, b in pairwise(cuts)]


def split_folders(raw: str, paths: Sequence[Path]) -> dict[Path, str]:
    """The published split of each file, told by its folder, where all three are there; "" = by hash of group, where none or
    one alone is. UNLABELLED files are in no split."""
    told = {path: split_folder(below(raw, path)) for path in paths}
    found = {split for split in told.values() if split != UNLABELLED}
    if found == set(FOLDERS.values()) - {UNLABELLED}:
        return told
    if len(found) > 1:
        there = sorted(found - {""})
        stray = next((f"; {below(raw, path)} is in no such folder" for path, split in told.items() if not split), "")
        raise BadFile(
            f"{raw}: of the published split there is {', '.join(there)}, told by folders called {', '.join(FOLDERS)}{stray}. "
            "Have train, val_id and val_ood there and no other, or give the folder of one: it is split by hash"
        )
    return {path: split if split == UNLABELLED else "" for path, split in told.items()}


def split_folder(path: str) -> str:
    """By the innermost folder that is called so, also s2ef_train_200K and val_ood_ads; "" if none is."""
    for folder in reversed(path.split("/")[:-1]):
        for name, split in FOLDERS.items():
            if re.fullmatch(rf"(s2ef_)?{name}(_.*)?", folder):
                return split
    return ""


def in_numbers(path: Path) -> tuple:
    """2.xyz before 10.xyz."""
    stem = path.name.split(".")[0]
    return (path.parent, not stem.isdigit(), int(stem) if stem.isdigit() else 0, path.name)
