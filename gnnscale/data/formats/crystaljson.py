"""Crystals in JSON as pymatgen writes them, streamed from files that do not fit into memory. The door of ijson."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ijson
import numpy as np
from ase.data import atomic_numbers

from gnnscale.data.formats.pieces import Place

NUMBERS = {**atomic_numbers, "D": 1}  # the Materials Project has deuterium


class Crystal(NamedTuple):
    numbers: np.ndarray  # (A,)
    positions: np.ndarray  # (A, 3) Angstrom
    cell: np.ndarray  # (3, 3) Angstrom, rows are lattice vectors
    pbc: np.ndarray  # (3,) bool


class Disordered(Exception):
    """A site that several species share: not a structure of atoms."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    opener = {".bz2": bz2.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "rb") as file:
        yield file


def members(place: Place) -> Iterator[tuple[str, Any]]:
    """(key, value) of the object that the file is, one at a time."""
    with opened(place.path) as file:
        yield from told(place, ijson.kvitems(file, "", use_float=True))


def entries(place: Place) -> Iterator[tuple[int, Any]]:
    """(index, value) of the list `entries` of the object that the file is."""
    with opened(place.path) as file:
        yield from told(place, enumerate(ijson.items(file, "entries.item", use_float=True)))


def told(place: Place, pairs: Iterator[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """A fault lies between what was read last and the end: that is said."""
    number = 0
    try:
        for key, value in pairs:
            place.where = str(key) if isinstance(key, str) else f"entry {key}"
            yield key, value
            number, last = number + 1, key
            place.where = f"after {last}, number {number}"
    except (ijson.JSONError, UnicodeDecodeError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise place.fault(f"no valid JSON ({words}): truncated?") from error


def first_key(place: Place) -> str:
    """Of the object that the file is; it tells layouts apart."""
    with opened(place.path) as file:
        try:
            for prefix, event, value in ijson.parse(file, use_float=True):
                if event == "map_key" and prefix == "":
                    return value
        except ijson.JSONError as error:
            raise place.fault(f"no valid JSON ({str(error).splitlines()[0]})") from error
    raise place.fault("no JSON object")


def crystal(place: Place, structure: dict) -> Crystal:
    """As pymatgen's Structure.from_dict: Cartesian positions from the fractional ones."""
    cell = np.array(structure["lattice"]["matrix"], float)  # (3, 3), rows
    sites = structure["sites"]
    symbols = []
    for site in sites:
        (first, *others) = site["species"]
        if others or first.get("occu", 1) != 1:
            raise Disordered(f"{len(site['species'])} species on a site")
        symbols.append(first["element"])
    fractional = np.array([site["abc"] for site in sites], float)
    if cell.shape != (3, 3) or fractional.shape != (len(sites), 3) or not sites:
        raise place.fault(f"a lattice of shape {cell.shape} with positions of shape {fractional.shape}")
    unknown = sorted({symbol for symbol in symbols if symbol not in NUMBERS})
    if unknown:
        raise place.fault(f"{', '.join(map(repr, unknown))} is no element")
    pbc = np.array(structure["lattice"].get("pbc", [True] * 3), bool)
    return Crystal(np.array([NUMBERS[symbol] for symbol in symbols]), fractional @ cell, cell, pbc)


def vectors(place: Place, values: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """A label as an array; NaN where the file has null."""
    if values is None:
        return np.full(shape, np.nan)
    made = np.array(values, float)
    if made.shape != shape:
        raise place.fault(f"{what} of shape {made.shape}, {shape} expected: the number of atoms disagrees")
    return made
