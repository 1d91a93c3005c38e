"""Extended XYZ (github.com/libAtoms/extxyz), read line by line; plain, or compressed with xz, gzip or bzip2.

A large plain file is cut into ranges of bytes, so that several processes can read it: a frame belongs to the range in
which its first byte lies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from ase.data import atomic_numbers

from gnnscale.data.formats.frame_counts import COMPRESSED, count_frames, count_spans, find_frame
from gnnscale.data.formats.label_numbers import to_numbers
from gnnscale.data.formats.own_structures import OwnFrame
from gnnscale.data.formats.pieces import Piece
from gnnscale.data.formats.raw_files import Location, name_below
from gnnscale.data.formats.recognise import check_kind
from gnnscale.data.formats.structure_counts import StructureCounts

BYTES_PER_PIECE = 1 << 24
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

    def to_own_frame(self) -> OwnFrame:
        columns = {name: column for name, column in self.columns.items() if name != "pos"}
        return OwnFrame(self.numbers, self.columns["pos"], self.cell, self.pbc, dict(self.info), columns)


def open_text(path: Path) -> IO[str]:
    return COMPRESSED.get(path.suffix, open)(path, "rt", encoding="utf-8")


def open_bytes(path: Path) -> IO[bytes]:
    return COMPRESSED.get(path.suffix, open)(path, "rb")


def pieces_by_bytes(raw: str, location: Location, limit: int | None, counts: StructureCounts) -> list[Piece]:
    """Return the file, or ranges of its bytes, each with its number of frames: counted, or estimated from samples."""
    path = location.path
    name, length, compressed = name_below(raw, path), path.stat().st_size, path.suffix in COMPRESSED
    check_kind(location, "extended XYZ", *(["xz", "gzip", "bzip2"] if compressed else ["extended XYZ"]))
    if compressed or limit is not None or length <= BYTES_PER_PIECE:
        found = counts(path.suffix, path, lambda: count_frames(path).frames)
        return [Piece(name, min(found, limit or found), path)]
    spans = list(pairwise([*range(0, length, BYTES_PER_PIECE), length]))
    return [
        Piece(f"{name}: bytes {a} to {b - 1}", max(1e-9, found.frames), path, span=(a, b))
        for (a, b), found in zip(spans, count_spans(path, spans))
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
        cell = to_numbers(location, "Lattice", info["Lattice"], (9,), label=False).reshape(3, 3)  # a, then b, then c
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
