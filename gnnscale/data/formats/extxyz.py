"""Extended XYZ (github.com/libAtoms/extxyz), read line by line; plain, or compressed with xz, gzip or bzip2.

A large plain file is cut into ranges of bytes, so that several processes can read it: a frame belongs to the range in
which its first byte lies.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from ase.data import atomic_numbers

from gnnscale.data.formats.pieces import Piece
from gnnscale.data.formats.raw_files import Location, name_below

COMPRESSED: dict[str, Callable[..., IO[Any]]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
BYTES_PER_PIECE = 1 << 24
MAX_LINE_BYTES = 1 << 16  # of a line before the start of a range; longer ones hold no number of atoms
COMPRESSION = 4  # a compressed file is about this many times smaller
PLAIN_PROPERTIES = "species:S:1:pos:R:3"  # of XYZ that is not extended
KEY_AND_VALUE = re.compile(
    r"""(?P<key>"[^"]*"|'[^']*'|[^\s=]+)
        (?:\s*=\s*(?P<value>"(?:[^"\\]|\\.)*" | '[^']*' | \{[^}]*\} | \[(?:[^\[\]]|\[[^\[\]]*\])*\] | [^\s]+))?""",
    re.X,
)


class Frame(NamedTuple):
    """One configuration as the file has it, without conversion."""

    line: int  # on which its number of atoms stands; the first line is 1
    numbers: np.ndarray  # (A,)
    columns: dict[str, np.ndarray]  # (A,) or (A, n), by name; `pos` is among them
    info: dict[str, str]  # keys and values of the comment, without quotation marks
    cell: np.ndarray  # (3, 3), rows are lattice vectors; zero without a Lattice
    pbc: np.ndarray  # (3,) bool; without the key pbc: true where there is a Lattice


def open_text(path: Path) -> IO[str]:
    return COMPRESSED.get(path.suffix, open)(path, "rt", encoding="utf-8")


def open_bytes(path: Path) -> IO[bytes]:
    return COMPRESSED.get(path.suffix, open)(path, "rb")


def pieces_by_bytes(raw: str, path: Path, whole: bool) -> list[Piece]:
    """Return the file, or ranges of its bytes, each with the number of frames estimated from the length of the first."""
    name, length, compressed = name_below(raw, path), path.stat().st_size, path.suffix in COMPRESSED
    with Location(path), open_bytes(path) as file:
        head = file.readline()
        atoms = min(int(head), 1 << 16) if head.strip().isdigit() else 0  # a wrong one is reported when it is read
        frame = len(head) + len(file.readline()) + sum(map(len, islice(file, atoms)))
    structures = max(1.0, length * (COMPRESSION if compressed else 1) / max(frame, 1))
    if compressed or whole or length <= BYTES_PER_PIECE:
        return [Piece(name, structures, path)]
    cuts = [*range(0, length, BYTES_PER_PIECE), length]
    return [
        Piece(f"{name}: bytes {a} to {b - 1}", structures * (b - a) / length, path, span=(a, b))
        for a, b in pairwise(cuts)
    ]


def read_frames(location: Location, span: tuple[int, int] | None = None) -> Iterator[Frame]:
    """Yield all frames, or those that begin in a range of bytes; location.where has the frame and line of a fault."""
    with open_bytes(location.path) as file:
        line, count, offset, since = 1, 0, 0, ""
        location.where = "line 1"
        if span and span[0]:
            offset = find_frame(file, span[0])
            file.seek(offset)
            since = f"counted from byte {offset}: "
        while (span is None or offset < span[1]) and (head := file.readline()):
            location.where = f"{since}frame {count}, line {line}"
            if not head.strip():  # between frames, or at the end
                line, offset = line + 1, offset + len(head)
                continue
            if not head.strip().isdigit() or int(head) < 1:
                raise location.fault(f"a number of atoms was expected, not {head.decode().strip()[:40]!r}")
            atoms = int(head)
            comment = file.readline()
            rows = list(islice(file, atoms))
            if len(rows) < atoms:
                raise location.fault(f"the file ends after {len(rows)} of {atoms} atoms: truncated?")
            if not rows[-1].endswith(b"\n"):  # a number that was cut is still a number
                raise location.fault("the last line has no end: truncated? (if it is whole, add a newline)")
            yield parse_frame(location, line, comment.decode(), rows)
            line, count = line + 2 + atoms, count + 1
            offset += len(head) + len(comment) + sum(map(len, rows))
        location.where = f"the end, after {count} frames"


def find_frame(file: IO[bytes], start: int) -> int:
    """Return the byte at which the first frame begins, at `start` or later.

    A comment may be a number too, but then the line before it is a number, and the line before a number of atoms is none.
    """
    file.seek(max(0, start - MAX_LINE_BYTES))
    before = file.read(min(start, MAX_LINE_BYTES))
    offset = start
    if not before.endswith(b"\n"):  # in the middle of a line
        file.seek(start)
        rest = file.readline()
        before, offset = before + rest, start + len(rest)
    last = before[:-1].rsplit(b"\n", 1)[-1]
    while True:
        file.seek(offset)
        head = file.readline()
        if not head:
            return offset
        if head.strip().isdigit() and not last.strip().isdigit() and is_frame(file, int(head)):
            return offset
        offset, last = offset + len(head), head


def is_frame(file: IO[bytes], atoms: int) -> bool:
    """Tell whether a frame of `atoms` atoms follows: a comment, the rows, then the end or a number again."""
    file.readline()
    if not all(len(row.split()) > 3 for row in islice(file, atoms)):
        return False
    after = file.readline().strip()
    return not after or after.isdigit()


def parse_frame(location: Location, line: int, comment: str, rows: list[bytes]) -> Frame:
    info = parse_comment(comment)
    layout = parse_properties(location, info.get("Properties", PLAIN_PROPERTIES))
    width = sum(number for _, _, number in layout)
    tokens = b"".join(rows).decode().split()
    if len(tokens) != width * len(rows):
        wrong = next(k for k, row in enumerate(rows) if len(row.split()) != width)
        where = location.where.rsplit(",", 1)[0]
        location.where = f"{where}, line {line + 2 + wrong}"
        raise location.fault(f"{len(rows[wrong].split())} columns, {width} expected")
    columns, start = {}, 0
    for name, kind, number in layout:
        parts = [tokens[k::width] for k in range(start, start + number)]
        columns[name] = parse_column(location, line, name, kind, parts)
        start += number
    if "pos" not in columns or columns["pos"].ndim != 2:
        raise location.fault(f"no column pos:R:3 among {', '.join(columns)}")
    cell = np.zeros((3, 3))
    if "Lattice" in info:
        cell = parse_numbers(location, "Lattice", info["Lattice"], (9,), label=False).reshape(3, 3)  # a, then b, then c
    return Frame(line, atomic_numbers_of(location, columns), columns, info, cell, parse_pbc(location, info))


def parse_comment(comment: str) -> dict[str, str]:
    """Parse key=value pairs, with values in quotation marks or not; a key alone is true."""
    found = {}
    for match in KEY_AND_VALUE.finditer(comment):
        value = match["value"]
        found[match["key"].strip("\"'")] = "T" if value is None else value[1:-1] if value[0] in "\"'{" else value
    return found


def parse_properties(location: Location, properties: str) -> list[tuple[str, str, int]]:
    parts = properties.split(":")
    try:
        layout = [(name, kind, int(number)) for name, kind, number in zip(parts[::3], parts[1::3], parts[2::3])]
    except ValueError:
        layout = []
    if len(parts) % 3 or not layout or any(kind not in "SRIL" or number < 1 for _, kind, number in layout):
        raise location.fault(f"Properties={properties[:80]!r} are not name:type:number, with type S, R, I or L")
    return layout


def parse_column(location: Location, line: int, name: str, kind: str, parts: list[list[str]]) -> np.ndarray:
    """Return one column as an array: (A,), or (A, n) for more than one number per atom."""
    if kind == "S":
        made = np.array(parts).T
    elif kind == "L":
        made = np.array([[token[0] in "Tt1" for token in part] for part in parts]).T
    else:
        number = float if kind == "R" else int
        made = np.empty((len(parts[0]), len(parts)), number)
        for k, part in enumerate(parts):
            try:
                made[:, k] = list(map(number, part))
            except ValueError:
                row = next(row for row, token in enumerate(part) if not is_number(token, number))
                where = location.where.rsplit(",", 1)[0]
                location.where = f"{where}, line {line + 2 + row}"
                raise location.fault(f"column {name}: {part[row][:40]!r} is not a number") from None
    return made[:, 0] if len(parts) == 1 else made


def is_number(token: str, number: type) -> bool:
    try:
        number(token)
    except ValueError:
        return False
    return True


def atomic_numbers_of(location: Location, columns: dict[str, np.ndarray]) -> np.ndarray:
    for name in ("Z", "numbers", "atomic_numbers"):
        if name in columns and columns[name].dtype.kind == "i":
            return columns[name]
    if "species" not in columns:
        raise location.fault(f"no column species or Z among {', '.join(columns)}")
    try:
        return np.array([atomic_numbers[symbol] for symbol in columns["species"].tolist()])
    except KeyError as error:
        raise location.fault(f"{error} is no element") from None


def parse_pbc(location: Location, info: dict[str, str]) -> np.ndarray:
    if "pbc" not in info:
        return np.full(3, "Lattice" in info)
    flags = info["pbc"].strip("[]").replace(",", " ").split()
    if len(flags) != 3 or any(flag[0] not in "TtFf01" for flag in flags):
        raise location.fault(f"pbc={info['pbc'][:40]!r} are not three of T and F")
    return np.array([flag[0] in "Tt1" for flag in flags])


def parse_numbers(location: Location, key: str, value: str, sizes: tuple[int, ...], label: bool = True) -> np.ndarray:
    """Parse the numbers in a value of the comment, as many as one of `sizes` says. A label may be NaN."""
    words = value.removeprefix("_JSON").replace("[", " ").replace("]", " ").replace(",", " ").split()
    try:
        made = np.array(list(map(float, words)))
    except ValueError:
        raise location.fault(f"{key}={value[:60]!r} is not made of numbers") from None
    if len(made) not in sizes or np.isinf(made).any() or (np.isnan(made).any() and not label):
        raise location.fault(f"{key}={value[:60]!r}: {' or '.join(map(str, sizes))} finite numbers were expected")
    return made
