"""JSON files with a list of structures as pymatgen writes them and their labels, the layout of mlearn and maml."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from gnnscale.data.formats import crystaljson
from gnnscale.data.formats.own_structures import OwnFrame
from gnnscale.data.formats.pieces import SkipStructure
from gnnscale.data.formats.raw_files import Location, name_below


def read_frames(
    raw: str, location: Location, limit: int | None, skip: SkipStructure
) -> Iterator[tuple[str, str, OwnFrame]]:
    """Yield (label, group, frame) of the entries, each of which is a group."""
    file, found = name_below(raw, location.path), False
    for number, entry in islice(crystaljson.read_entries(location, "item"), limit):
        found = True
        label = f"{file} structure {number}"
        try:
            yield label, label, to_frame(location, entry)
        except crystaljson.DisorderedSite:
            skip("partial occupancy")
    if not found:
        raise location.fault(
            "no list of structures in it", "type dataset: ase_files for ASE's rows, mptrj or alexandria for theirs"
        )


def to_frame(location: Location, entry: Any) -> OwnFrame:
    """Convert an entry; labels stand under `outputs`, or beside the structure. mlearn calls the stress virial_stress."""
    if not isinstance(entry, dict) or "structure" not in entry:
        held = ", ".join(entry)[:300] if isinstance(entry, dict) else type(entry).__name__
        raise location.fault(f"an entry with `structure` was expected; there is {held}")
    made = to_geometry(location, entry["structure"])
    values = {**entry, **(entry.get("outputs") or {})}
    if "virial_stress" in values:
        values.setdefault("stress", values.pop("virial_stress"))
    columns = {key: np.array(value) for key, value in values.items() if is_column(value, len(made.numbers))}
    return OwnFrame(*made, values, columns)


def to_geometry(location: Location, structure: dict[str, Any]) -> crystaljson.Crystal:
    """Convert a structure, or a molecule, which has no lattice."""
    if "lattice" in structure:
        return crystaljson.to_crystal(location, structure)
    numbers = crystaljson.numbers_of(location, structure["sites"])
    positions = np.array([site["xyz"] for site in structure["sites"]], float)
    return crystaljson.Crystal(numbers, positions, np.zeros((3, 3)), np.zeros(3, bool))


def is_column(value: Any, atoms: int) -> bool:
    return isinstance(value, list) and len(value) == atoms and np.shape(value[0]) == (3,)
