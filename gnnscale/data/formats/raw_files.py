"""Raw files as they were downloaded: finding and naming them, and errors that say where in a file a fault lies.

Light to import: the planner imports it, on a login node, through the scripts in datasets/.
"""

from __future__ import annotations

import lzma
import pickle
import zlib
from pathlib import Path
from types import TracebackType

from gnnscale.contract.errors import BadFile

# Raised by the libraries that read files when a file is broken. An OSError counts unless it is of the operating system.
READ_ERRORS = (
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
BEGINNING = "its beginning"
DOWNLOAD_AGAIN = "compare its size and checksum with the published ones, and download it again if they differ"
OWN_FILE = (
    "correct the file where it was made, or the options of the dataset, which name its keys and units (docs/data.md)"
)


class Location:
    """A file that is being read, and the position in it. As a context it adds both to an error of reading.

    `hint` says what to do about a fault for which nothing better is known.
    """

    def __init__(self, path: Path, hint: str = DOWNLOAD_AGAIN):
        self.path, self.where, self.hint = path, BEGINNING, hint

    def fault(self, what: str, *hints: str) -> BadFile:
        return BadFile(f"{self.path}: {self.where}: {what}", *(hints or (self.hint,)))

    def __enter__(self) -> Location:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, READ_ERRORS) or (isinstance(error, OSError) and error.errno is not None):
            return
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, KeyError):
            reason = f"{error} is missing"
        if isinstance(error, UnicodeDecodeError):
            reason = f"byte {error.object[error.start]:#04x} is no text in UTF-8"
        raise self.fault(f"unreadable ({reason}); truncated, or not of this format") from error


def find_files(raw: str, patterns: tuple[str, ...], download: str) -> list[Path]:
    """Return the file `raw`, or the sorted files in the folder `raw` that match; `download` says how to get them."""
    path = Path(raw).expanduser()
    if path.is_file():
        return [path]
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; {download}")
    files = sorted({p for pattern in patterns for p in path.rglob(pattern) if p.is_file()}, key=by_number)
    if not files:
        raise FileNotFoundError(f"{path}: no {' or '.join(patterns)} in this folder; {download}")
    return files


def name_below(raw: str, path: Path) -> str:
    """Return the name of a file relative to the folder `raw`, which is the same wherever that folder lies."""
    above = Path(raw).expanduser()
    return path.relative_to(above).as_posix() if above != path and above in path.parents else path.name


def by_number(path: Path) -> tuple[Path, bool, int, str]:
    """Return a sort key that puts 2.xyz before 10.xyz."""
    stem = path.name.split(".")[0]
    return (path.parent, not stem.isdigit(), int(stem) if stem.isdigit() else 0, path.name)
