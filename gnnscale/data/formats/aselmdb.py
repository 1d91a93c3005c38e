"""Structures from rows of ASE's LMDB databases (.aselmdb), in which Meta publishes OMat24, sAlex and OMol25."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from gnnscale.atoms.structure import Structure, stress_from_voigt
from gnnscale.data.formats import lmdbs
from gnnscale.data.formats.pieces import Piece, pieces_by_range
from gnnscale.data.formats.raw_files import Location


def pieces_by_rows(raw: str, paths: list[Path], limit: int | None) -> list[Piece]:
    """Divide the first `limit` rows of each file into pieces."""
    listed = []
    for path in paths:
        with Location(path) as location:
            count = lmdbs.count_rows(location)
        listed += pieces_by_range(raw, path, min(count, limit or count), "rows")
    return listed


def read_structures(
    location: Location, span: tuple[int, int], reduced: bool
) -> Iterator[tuple[Structure, dict[str, Any]]]:
    """Yield each structure with what else its row has under `data`. The group is the formula, which every row has.

    With `reduced` Si8O16 counts as SiO2, which is right for crystals: a supercell is the same material.
    """
    for key, row in lmdbs.read_rows(location, span):
        location.where = f"row {key}"
        data = row.get("data")
        data = data if isinstance(data, dict) else {}
        yield to_structure(location, key, row, data, reduced), data


def to_structure(location: Location, key: int, row: lmdbs.RawRecord, data: dict[str, Any], reduced: bool) -> Structure:
    lacking = [name for name in ("numbers", "positions", "cell", "pbc", "energy", "forces") if row.get(name) is None]
    if lacking:
        raise location.fault(f"{', '.join(lacking)} is missing; there is {', '.join(row)[:300]}")
    numbers = np.asarray(row["numbers"])
    atoms = len(numbers)
    stress = np.full((3, 3), np.nan)
    if row.get("stress") is not None:  # eV/Angstrom^3, positive in tension, as everywhere in ASE
        six = np.asarray(row["stress"], float)
        stress = six if six.shape == (3, 3) else stress_from_voigt(to_array(location, six, (6,), "stress"))
    origin = ", ".join(str(data[name]) for name in ("sid", "source", "fid") if name in data)
    return Structure(
        numbers=to_array(location, numbers, (atoms,), "numbers"),
        positions=to_array(location, row["positions"], (atoms, 3), "positions"),
        cell=to_array(location, row["cell"], (3, 3), "cell"),
        pbc=to_array(location, np.asarray(row["pbc"]), (3,), "pbc").astype(bool),
        energy=float(row["energy"]),
        forces=to_array(location, row["forces"], (atoms, 3), "forces"),
        stress=stress,
        group=formula(numbers, reduced),
        label=f"row {key}" + (f", {origin}" if origin else ""),
    )


def to_array(location: Location, value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    made = np.asarray(value)
    if made.shape != shape or made.dtype.kind not in "biuf":
        raise location.fault(f"{name} of shape {made.shape} and type {made.dtype}, {shape} expected")
    return made


def formula(numbers: np.ndarray, reduced: bool) -> str:
    elements, counts = np.unique(numbers, return_counts=True)
    share = gcd(*counts.tolist()) if reduced else 1
    return "".join(f"{chemical_symbols[z]}{count // share}" for z, count in zip(elements, counts))
