"""Extended XYZ, read exactly and line by line: github.com/libAtoms/extxyz. Plain, or in xz, gzip or bzip2."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from ase.data import atomic_numbers

from gnnscale.data.published import Place

OPENERS = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
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


def opened(path: Path) -> TextIO:
    return OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8")


def frames(place: Place) -> Iterator[Frame]:
    """All frames; place.where says the frame and line at which a fault is."""
    with opened(place.path) as file:
        line, count = 1, 0
        place.where = "line 1"
        while head := file.readline():
            place.where = f"frame {count}, line {line}"
            if not head.strip():  # between frames, or at the end
                line += 1
                continue
            if not head.strip().isdecimal() or int(head) < 1:
                raise place.fault(f"a number of atoms was expected, not {head.strip()[:40]!r}")
            atoms = int(head)
            comment = file.readline()
            rows = list(islice(file, atoms))
            if len(rows) < atoms:
                raise place.fault(f"the file ends after {len(rows)} of {atoms} atoms: truncated?")
            if not rows[-1].endswith("\n"):  # a number that was cut is still a number
                raise place.fault("the last line has no end: truncated? (if it is whole, add a newline)")
            yield frame(place, line, comment, rows)
            line, count = line + 2 + atoms, count + 1
        place.where = f"the end, after {count} frames"


def frame(place: Place, line: int, comment: str, rows: list[str]) -> Frame:
    info = pairs(comment)
    layout = fields(place, info.get("Properties", PLAIN))
    width = sum(number for _, _, number in layout)
    tokens = "".join(rows).split()
    if len(tokens) != width * len(rows):
        wrong = next(k for k, row in enumerate(rows) if len(row.split()) != width)
        where = place.where.split(",")[0]
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
                where = place.where.split(",")[0]
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
