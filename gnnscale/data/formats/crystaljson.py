"""Crystals in JSON as pymatgen writes them, streamed from files larger than memory. The only file that imports ijson."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import ijson
import numpy as np
from ase.data import atomic_numbers

from gnnscale.data.formats.raw_files import Location
from gnnscale.data.formats.recognise import check_kind
from gnnscale.data.formats.structure_counts import count_words

COMPRESSED: dict[str, Callable[..., IO[Any]]] = {".bz2": bz2.open, ".gz": gzip.open}
ATOMIC_NUMBERS = {**atomic_numbers, "D": 1}  # the Materials Project has deuterium


class Crystal(NamedTuple):
    """The geometry of a crystal, without labels."""

    numbers: np.ndarray  # (A,)
    positions: np.ndarray  # (A, 3) Angstrom
    cell: np.ndarray  # (3, 3) Angstrom, rows are lattice vectors
    pbc: np.ndarray  # (3,) bool


class DisorderedSite(Exception):
    """A site is shared by several species, so the crystal has no definite atoms."""


@contextmanager
def open_json(location: Location) -> Iterator[IO[bytes]]:
    check_json(location)
    with COMPRESSED.get(location.path.suffix, open)(location.path, "rb") as file:
        yield file


def check_json(location: Location) -> None:
    check_kind(location, "JSON", *(["gzip", "bzip2"] if location.path.suffix in COMPRESSED else ["JSON"]))


def count_in(location: Location, word: bytes) -> float:
    """Return how often a word occurs in a JSON file, estimated if the file is long."""
    check_json(location)
    return count_words(location.path, word)


def read_members(location: Location) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of the object at the top of the file, one at a time."""
    with open_json(location) as file:
        yield from with_location(location, ijson.kvitems(file, "", use_float=True))


def read_entries(location: Location, prefix: str = "entries.item") -> Iterator[tuple[int, Any]]:
    """Yield (index, value) of the list `entries` in the object at the top of the file; `item`: of a list at the top."""
    with open_json(location) as file:
        yield from with_location(location, enumerate(ijson.items(file, prefix, use_float=True)))


def with_location(location: Location, pairs: Iterator[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs and keep the location up to date: a fault lies after the pair that was read last."""
    number = 0
    try:
        for key, value in pairs:
            location.where = str(key) if isinstance(key, str) else f"entry {key}"
            yield key, value
            number, last = number + 1, key
            location.where = f"after {last}, number {number}"
    except (ijson.JSONError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise location.fault(f"no valid JSON ({reason}): truncated?") from error


def first_key(location: Location) -> str:
    """Return the first key of the object at the top of the file, which distinguishes layouts."""
    with open_json(location) as file:
        try:
            for prefix, event, value in ijson.parse(file, use_float=True):
                if event == "map_key" and prefix == "":
                    return value
        except ijson.JSONError as error:
            raise location.fault(f"no valid JSON ({str(error).splitlines()[0]})") from error
    raise location.fault("no JSON object")


def to_crystal(location: Location, structure: dict) -> Crystal:
    """Convert as pymatgen's Structure.from_dict does: Cartesian positions from the fractional ones."""
    cell = np.array(structure["lattice"]["matrix"], float)  # (3, 3), rows
    sites = structure["sites"]
    numbers = numbers_of(location, sites)
    fractional = np.array([site["abc"] for site in sites], float)
    if cell.shape != (3, 3) or fractional.shape != (len(sites), 3) or not sites:
        raise location.fault(f"a lattice of shape {cell.shape} with positions of shape {fractional.shape}")
    pbc = np.array(structure["lattice"].get("pbc", [True] * 3), bool)
    return Crystal(numbers, fractional @ cell, cell, pbc)


def numbers_of(location: Location, sites: list[dict]) -> np.ndarray:
    """Return the atomic number of each site; a site that several species share raises DisorderedSite."""
    symbols = []
    for site in sites:
        (first, *others) = site["species"]
        if others or first.get("occu", 1) != 1:
            raise DisorderedSite(f"{len(site['species'])} species on a site")
        symbols.append(first["element"])
    unknown = sorted({symbol for symbol in symbols if symbol not in ATOMIC_NUMBERS})
    if unknown:
        raise location.fault(f"{', '.join(map(repr, unknown))} is no element")
    return np.array([ATOMIC_NUMBERS[symbol] for symbol in symbols])


def to_array(location: Location, values: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Return a label as an array; NaN where the file has null."""
    if values is None:
        return np.full(shape, np.nan)
    made = np.array(values, float)
    if made.shape != shape:
        raise location.fault(f"{what} of shape {made.shape}, {shape} expected: the number of atoms disagrees")
    return made
