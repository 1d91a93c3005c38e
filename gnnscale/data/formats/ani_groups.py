"""Groups of HDF5 files as pyanitools wrote them: conformations of a molecule (ANI-1, COMP6) or of as many atoms (ANI-2x)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from ase.data import atomic_numbers
from ase.symbols import Symbols

from gnnscale.data.formats import hdf5
from gnnscale.data.formats.own_structures import OwnFrame
from gnnscale.data.formats.pieces import Piece, SkipStructure, pieces_by_range
from gnnscale.data.formats.raw_files import Location, name_below

if TYPE_CHECKING:
    import h5py

NEEDED = {"coordinates", "species"}
HIGH = "HE"  # ending of the names of conformations far above the minimum, in ANI-1


def pieces_by_conformations(raw: str, location: Location, limit: int | None) -> list[Piece]:
    """Divide the conformations of each group into pieces; `limit` counts groups."""
    listed = []
    with hdf5.open_hdf5(location) as file:
        for group in list(hdf5.find_groups(file, NEEDED))[:limit]:
            name = str(group.name).strip("/")
            count = len(group["coordinates"])
            parts = pieces_by_range(raw, location.path, count, f"{name}, conformations")
            listed += [piece._replace(key=name) for piece in parts if piece.structures]
        if not listed:
            held = ", ".join(hdf5.member_names(file)[:8]) or "nothing"
            raise location.fault(
                f"no group has {' and '.join(sorted(NEEDED))}; there is {held}",
                "type dataset: ani1x, qm7x or spice for the files of these",
            )
    return listed


def read_frames(raw: str, location: Location, piece: Piece, skip: SkipStructure) -> Iterator[tuple[str, str, OwnFrame]]:
    """Yield (label, molecule, frame) of a range of conformations. The molecule of a group of several is its formula."""
    (first, end), file_name = piece.bounds, name_below(raw, location.path)
    with hdf5.open_hdf5(location) as file:
        group = hdf5.open_group(location, file, piece.key)
        if first == 0 and f"coordinates{HIGH}" in group:
            for _ in range(len(group[f"coordinates{HIGH}"])):
                skip("of high energy, which ANI-1 keeps apart")
        positions = read_rows(location, group, "coordinates", first, end)
        species = read_species(location, group, first, end)
        labels = {key: read_rows(location, group, key, first, end) for key in label_keys(group)}
        for k in range(end - first):
            numbers = species if species.ndim == 1 else species[k]
            there = numbers > 0  # -1 fills up molecules of fewer atoms
            location.where = f"{piece.key} conformation {first + k}"
            molecule = piece.key if species.ndim == 1 else str(Symbols(numbers[there]).formula)
            frame = to_frame(numbers, there, positions[k], {name: values[k] for name, values in labels.items()})
            yield f"{file_name} {location.where}", molecule, frame


def to_frame(numbers: np.ndarray, there: np.ndarray, positions: np.ndarray, labels: dict[str, np.ndarray]) -> OwnFrame:
    columns = {name: value[there] for name, value in labels.items() if value.shape[:1] == numbers.shape}
    values = {name: value for name, value in labels.items() if value.ndim == 0}
    return OwnFrame(numbers[there], positions[there], np.zeros((3, 3)), np.zeros(3, bool), values, columns)


def label_keys(group: h5py.Group) -> list[str]:
    """Return the names of the arrays that have a number, or rows of numbers, for each conformation."""
    count = len(group["coordinates"])
    arrays = hdf5.arrays_of(group)
    return [
        name
        for name, held in arrays.items()
        if name not in NEEDED and held.shape[:1] == (count,) and held.dtype.kind in "fiu"
    ]


def read_rows(location: Location, group: h5py.Group, key: str, first: int, end: int) -> np.ndarray:
    stored = group[key]
    if stored.dtype.kind not in "fiu" or len(stored) < end:
        raise location.fault(
            f"{key} has shape {stored.shape} and type {stored.dtype}: numbers of conformations disagree"
        )
    return np.asarray(stored[first:end], float)


def read_species(location: Location, group: h5py.Group, first: int, end: int) -> np.ndarray:
    """Return atomic numbers (A,), or (conformations, A); a file may have symbols."""
    stored = group["species"]
    held = stored[first:end] if stored.ndim == 2 else stored[()]
    if held.dtype.kind in "iu":
        numbers = held.astype(np.int64)
    else:
        symbols = np.vectorize(lambda each: each.decode() if isinstance(each, bytes) else str(each), otypes=[object])(
            held
        )
        unknown = sorted(set(symbols.ravel()) - atomic_numbers.keys())
        if unknown:
            raise location.fault(f"species {unknown[0]!r} is no element")
        numbers = np.vectorize(atomic_numbers.__getitem__, otypes=[np.int64])(symbols)
    if numbers.shape[-1] != group["coordinates"].shape[1]:
        raise location.fault(f"species {numbers.shape}, coordinates {group['coordinates'].shape}: the atoms disagree")
    return numbers
