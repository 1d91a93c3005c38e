"""Rows of ASE's LMDB databases (.aselmdb), as Meta publishes OMat24, sAlex and OMol25, as structures."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from gnnscale.atoms.structure import Structure
from gnnscale.data.formats import lmdbs
from gnnscale.data.formats.labels import voigt
from gnnscale.data.formats.pieces import Place, Unit, ranges


def units(raw: str, paths: list[Path], limit: int | None) -> list[Unit]:
    """Ranges of the rows of all files, of each the first `limit`."""
    listed = []
    for path in paths:
        with Place(path) as place:
            count = lmdbs.count_rows(place)
        listed += ranges(raw, path, min(count, limit or count), "rows")
    return listed


def structures(place: Place, span: tuple[int, int], reduced: bool) -> Iterator[tuple[Structure, dict[str, Any]]]:
    """(structure, what else the row says under `data`). The formula is the group: the finest that every row has.

    `reduced`: Si8O16 is SiO2, as it should be for crystals, of which a supercell is the same material.
    """
    for key, row in lmdbs.rows(place, span):
        place.where = f"row {key}"
        data = row.get("data")
        data = data if isinstance(data, dict) else {}
        yield structure(place, key, row, data, reduced), data


def structure(place: Place, key: int, row: lmdbs.Record, data: dict[str, Any], reduced: bool) -> Structure:
    lacking = [name for name in ("numbers", "positions", "cell", "pbc", "energy", "forces") if row.get(name) is None]
    if lacking:
        raise place.fault(f"{', '.join(lacking)} is missing; there is {', '.join(row)[:300]}")
    numbers = np.asarray(row["numbers"])
    atoms = len(numbers)
    stress = np.full((3, 3), np.nan)
    if row.get("stress") is not None:  # eV/Angstrom^3, positive in tension, as everywhere in ASE
        six = np.asarray(row["stress"], float)
        stress = six if six.shape == (3, 3) else voigt(shaped(place, six, (6,), "stress"))
    origin = ", ".join(str(data[name]) for name in ("sid", "source", "fid") if name in data)
    return Structure(
        numbers=shaped(place, numbers, (atoms,), "numbers"),
        positions=shaped(place, row["positions"], (atoms, 3), "positions"),
        cell=shaped(place, row["cell"], (3, 3), "cell"),
        pbc=shaped(place, np.asarray(row["pbc"]), (3,), "pbc").astype(bool),
        energy=float(row["energy"]),
        forces=shaped(place, row["forces"], (atoms, 3), "forces"),
        stress=stress,
        group=formula(numbers, reduced),
        label=f"row {key}" + (f", {origin}" if origin else ""),
    )


def shaped(place: Place, value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    made = np.asarray(value)
    if made.shape != shape or made.dtype.kind not in "biuf":
        raise place.fault(f"{name} of shape {made.shape} and type {made.dtype}, {shape} expected")
    return made


def formula(numbers: np.ndarray, reduced: bool) -> str:
    elements, counts = np.unique(numbers, return_counts=True)
    share = gcd(*counts.tolist()) if reduced else 1
    return "".join(f"{chemical_symbols[z]}{count // share}" for z, count in zip(elements, counts))
