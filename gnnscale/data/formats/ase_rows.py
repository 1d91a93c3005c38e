"""Rows of ASE's databases: SQLite (.db), JSON (.json, one row at a time) and LMDB (.aselmdb). They are only read.

ASE's own SQLite class would write tables into a file that has none, so its tables are read here.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any
from urllib.parse import quote

import numpy as np
from ase.db.core import bytes_to_object

from gnnscale.data.formats import crystaljson, lmdbs
from gnnscale.data.formats.own_structures import OwnFrame
from gnnscale.data.formats.raw_files import Location

Row = dict[str, Any]
ARRAYS = {"numbers": "<i4", "positions": "<f8", "cell": "<f8", "forces": "<f8", "stress": "<f8", "magmoms": "<f8"}
COLUMNS = "id, pbc, energy, free_energy, key_value_pairs, data, " + ", ".join(ARRAYS)
PERIODIC_BITS = np.array([1, 2, 4])


@contextmanager
def open_database(location: Location) -> Iterator[sqlite3.Connection]:
    """Open an SQLite file of ASE read-only."""
    location.where = "its tables"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(location.path))}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            yield connection
    except sqlite3.Error as error:
        raise location.fault(f"no database of ASE, or broken ({error})") from error


def count_rows(location: Location) -> int:
    with open_database(location) as connection:
        (count,) = connection.execute("SELECT COUNT(*) FROM systems").fetchone()
        return int(count)


def read_database(location: Location, span: tuple[int, int]) -> Iterator[tuple[str, OwnFrame]]:
    """Yield (label, frame) of a range of rows, in the order of their ids."""
    with open_database(location) as connection:
        query = f"SELECT {COLUMNS} FROM systems ORDER BY id LIMIT ? OFFSET ?"
        for stored in connection.execute(query, (span[1] - span[0], span[0])):
            location.where = f"row {stored['id']}"
            yield location.where, to_frame(location, decode_row(stored))


def decode_row(stored: sqlite3.Row) -> Row:
    row = {key: stored[key] for key in ("energy", "free_energy")}
    row |= {key: np.frombuffer(stored[key], kind) for key, kind in ARRAYS.items() if stored[key] is not None}
    row["pbc"] = (int(stored["pbc"] or 0) & PERIODIC_BITS).astype(bool)
    return row | {key: decode_json(stored[key]) for key in ("key_value_pairs", "data")}


def decode_json(stored: str | bytes | None) -> Any:
    if not stored:
        return {}
    return bytes_to_object(stored) if isinstance(stored, bytes) else lmdbs.to_arrays(json.loads(stored))


def read_json(location: Location, limit: int | None) -> Iterator[tuple[str, OwnFrame]]:
    """Yield (label, frame) of the rows of a JSON file: the members whose names are numbers."""
    rows = ((key, row) for key, row in crystaljson.read_members(location) if key.isdigit() and isinstance(row, dict))
    found = False
    for key, row in islice(rows, limit):
        found, location.where = True, f"row {key}"
        yield location.where, to_frame(location, lmdbs.to_arrays(row))
    if not found:
        raise location.fault("no rows of ASE in it", "lists of pymatgen's structures: type dataset: pymatgen_json")


def read_lmdb(location: Location, span: tuple[int, int]) -> Iterator[tuple[str, OwnFrame]]:
    for key, row in lmdbs.read_rows(location, span):
        location.where = f"row {key}"
        yield location.where, to_frame(location, row)


def to_frame(location: Location, row: Row) -> OwnFrame:
    """Convert a row: energy, forces and stress of the calculator stand before equal names among what users add."""
    lacking = [name for name in ("numbers", "positions", "cell", "pbc") if row.get(name) is None]
    if lacking:
        raise location.fault(f"{', '.join(lacking)} is missing; there is {', '.join(row)[:300]}")
    numbers = np.asarray(row["numbers"], int).ravel()
    cell = row["cell"]
    if isinstance(cell, dict):  # a Cell object of ASE 3.18 and later
        cell = cell["array"]
    values: Row = {**(row.get("data") or {}), **(row.get("key_value_pairs") or {})}
    values |= {key: row[key] for key in ("energy", "free_energy", "stress") if row.get(key) is not None}
    columns = {
        key: value for key, value in values.items() if isinstance(value, np.ndarray) and len(value) == len(numbers)
    }
    if row.get("forces") is not None:
        columns["forces"] = np.asarray(row["forces"], float).reshape(-1, 3)
    return OwnFrame(
        numbers,
        np.asarray(row["positions"], float).reshape(-1, 3),
        np.asarray(cell, float).reshape(3, 3),
        np.asarray(row["pbc"]).astype(bool),
        values,
        columns,
    )
