"""Extended XYZ, read exactly and line by line: github.com/libAtoms/extxyz. Plain, or in xz, gzip or bzip2.

A large plain file is cut into ranges of bytes, so that several processes can read it: a frame belongs to the range in
which its first byte is.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from ase.data import atomic_numbers

from gnnscale.data.formats.pieces import Place, Unit, below

OPENERS = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
RANGE = 1 << 24  # bytes of a unit
LINE = 1 << 16  # bytes; no line is longer, or it is none that matters
PACKING = 4  # a compressed file is about so many times smaller
PLAIN = "species:S:1:pos:R:3"  # XYZ before it was extended
PAIR = re.compile(
    r"""(?P<key>"[^"]*"|'[^']*'|[^\s=]+)
        (?:\s*=\s*(?P<value>"(?:[^"\\]|\\.)*" | '[^']*' | \{[^}]*\} | \[(?:[^\[\]]|\[[^\[\]]*\])*\] | [^\s]+))?""",
    re.X,
)


class Frame(NamedTuple):
    """One configuration as the file has it, nothing converted."""

    line: int  # of its number of atoms; the first line is 1
    numbers: np.ndarray  # (A,)
    columns: dict[str, np.ndarray]  # (A,) or (A, n), by name; `pos` is among them
    info: dict[str, str]  # of its comment, without quotation marks
    cell: np.ndarray  # (3, 3), rows are lattice vectors; zero without a Lattice
    pbc: np.ndarray  # (3,) bool; without the key: whether there is a Lattice


def opened(path: Path, mode: str = "rt") -> IO:
    return OPENERS.get(path.suffix, open)(path, mode, encoding="utf-8" if "t" in mode else None)


def units(raw: str, path: Path, whole: bool) -> list[Unit]:
    """The file, or ranges of it, each with an estimate of its frames by the length of the first."""
    name, length, packed = below(raw, path), path.stat().st_size, path.suffix in OPENERS
    with Place(path), opened(path, "rb") as file:
        head = file.readline()
        atoms = min(int(head), 1 << 16) if head.strip().isdigit() else 0  # whatever else it is, reading will tell
        frame = len(head) + len(file.readline()) + sum(map(len, islice(file, atoms)))
    structures = max(1.0, length * (PACKING if packed else 1) / max(frame, 1))
    if packed or whole or length <= RANGE:
        return [Unit(name, structures, path)]
    cuts = [*range(0, length, RANGE), length]
    return [
        Unit(f"{name}: bytes {a} to {b - 1}", structures * (b - a) / length, path, span=(a, b))
        for a, b in pairwise(cuts)
    ]


def frames(place: Place, span: tuple[int, int] | None = None) -> Iterator[Frame]:
    """All frames, or those that begin in a range of bytes; place.where says the frame and line at which a fault is."""
    with opened(place.path, "rb") as file:
        line, count, offset, since = 1, 0, 0, ""
        place.where = "line 1"
        if span and span[0]:
            offset = first_frame(file, span[0])
            file.seek(offset)
            since = f"counted from byte {offset}: "
        while (span is None or offset < span[1]) and (head := file.readline()):
            place.where = f"{since}frame {count}, line {line}"
            if not head.strip():  # between frames, or at the end
                line, offset = line + 1, offset + len(head)
                continue
            if not head.strip().isdigit() or int(head) < 1:
                raise place.fault(f"a number of atoms was expected, not {head.decode().strip()[:40]!r}")
            atoms = int(head)
            comment = file.readline()
            rows = list(islice(file, atoms))
            if len(rows) < atoms:
                raise place.fault(f"the file ends after {len(rows)} of {atoms} atoms: truncated?")
            if not rows[-1].endswith(b"\n"):  # a number that was cut is still a number
                raise place.fault("the last line has no end: truncated? (if it is whole, add a newline)")
            yield frame(place, line, comment.decode(), rows)
            line, count = line + 2 + atoms, count + 1
            offset += len(head) + len(comment) + sum(map(len, rows))
        place.where = f"the end, after {count} frames"


def first_frame(file: IO[bytes], start: int) -> int:
    """Where the first frame begins that does so at byte `start` or later.

    A comment may be a number too; but the line before it is one, which that before a number of atoms never is.
    """
    file.seek(max(0, start - LINE))
    before = file.read(min(start, LINE))
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
        if head.strip().isdigit() and not last.strip().isdigit() and begins(file, int(head)):
            return offset
        offset, last = offset + len(head), head


def begins(file: IO[bytes], atoms: int) -> bool:
    """Whether a frame of so many atoms follows: its comment, its rows, then nothing or a number again."""
    file.readline()
    if not all(len(row.split()) > 3 for row in islice(file, atoms)):
        return False
    after = file.readline().strip()
    return not after or after.isdigit()


def frame(place: Place, line: int, comment: str, rows: list[bytes]) -> Frame:
    info = pairs(comment)
    layout = fields(place, info.get("Properties", PLAIN))
    width = sum(number for _, _, number in layout)
    tokens = b"".join(rows).decode().split()
    if len(tokens) != width * len(rows):
        wrong = next(k for k, row in enumerate(rows) if len(row.split()) != width)
        where = place.where.rsplit(",", 1)[0]
        place.where = f"{where}, line {line + 2 + wrong}"
        raise place.fault(f"{len(rows[wrong].split())} columns, {width} expected")
    columns, start = {}, 0
    for name, kind, number in layout:
        parts = [tokens[k::width] for k in range(start, start + number)]
        columns[name] = column(place, line, name, kind, parts)
        start += number
    if "pos" not in columns or columns["pos"].ndim != 2:
        raise place.fault(f"no column pos:R:3 among {', '.join(columns)}")
    cell = np.zeros((3, 3))
    if "Lattice" in info:
        cell = numbers_in(place, "Lattice", info["Lattice"], (9,), label=False).reshape(3, 3)  # a, then b, then c
    return Frame(line, elements(place, columns), columns, info, cell, periodic(place, info))


def pairs(comment: str) -> dict[str, str]:
    """key=value, values quoted or not; a key alone is true."""
    found = {}
    for match in PAIR.finditer(comment):
        value = match["value"]
        found[match["key"].strip("\"'")] = "T" if value is None else value[1:-1] if value[0] in "\"'{" else value
    return found


def fields(place: Place, properties: str) -> list[tuple[str, str, int]]:
    parts = properties.split(":")
    try:
        layout = [(name, kind, int(number)) for name, kind, number in zip(parts[::3], parts[1::3], parts[2::3])]
    except ValueError:
        layout = []
    if len(parts) % 3 or not layout or any(kind not in "SRIL" or number < 1 for _, kind, number in layout):
        raise place.fault(f"Properties={properties[:80]!r} are not name:type:number, with type S, R, I or L")
    return layout


def column(place: Place, line: int, name: str, kind: str, parts: list[list[str]]) -> np.ndarray:
    """(A,), or (A, n) of more than one number per atom."""
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
                where = place.where.rsplit(",", 1)[0]
                place.where = f"{where}, line {line + 2 + row}"
                raise place.fault(f"column {name}: {part[row][:40]!r} is not a number") from None
    return made[:, 0] if len(parts) == 1 else made


def is_number(token: str, number: type) -> bool:
    try:
        number(token)
    except ValueError:
        return False
    return True


def elements(place: Place, columns: dict[str, np.ndarray]) -> np.ndarray:
    for name in ("Z", "numbers", "atomic_numbers"):
        if name in columns and columns[name].dtype.kind == "i":
            return columns[name]
    if "species" not in columns:
        raise place.fault(f"no column species or Z among {', '.join(columns)}")
    try:
        return np.array([atomic_numbers[symbol] for symbol in columns["species"].tolist()])
    except KeyError as error:
        raise place.fault(f"{error} is no element") from None


def periodic(place: Place, info: dict[str, str]) -> np.ndarray:
    if "pbc" not in info:
        return np.full(3, "Lattice" in info)
    flags = info["pbc"].strip("[]").replace(",", " ").split()
    if len(flags) != 3 or any(flag[0] not in "TtFf01" for flag in flags):
        raise place.fault(f"pbc={info['pbc'][:40]!r} are not three of T and F")
    return np.array([flag[0] in "Tt1" for flag in flags])


def numbers_in(place: Place, key: str, value: str, sizes: tuple[int, ...], label: bool = True) -> np.ndarray:
    """The numbers in a value of the comment; there must be as many as one of `sizes` says. A label may be NaN."""
    words = value.removeprefix("_JSON").replace("[", " ").replace("]", " ").replace(",", " ").split()
    try:
        made = np.array(list(map(float, words)))
    except ValueError:
        raise place.fault(f"{key}={value[:60]!r} is not made of numbers") from None
    if len(made) not in sizes or np.isinf(made).any() or (np.isnan(made).any() and not label):
        raise place.fault(f"{key}={value[:60]!r}: {' or '.join(map(str, sizes))} finite numbers were expected")
    return made
