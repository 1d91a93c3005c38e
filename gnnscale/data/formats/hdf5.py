"""Groups and arrays of a published HDF5 file. The only file that imports h5py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from gnnscale.data.formats.pieces import Place, Unit, below


@contextmanager
def opened(place: Place) -> Iterator[h5py.File]:
    place.where = "its beginning"  # which is where HDF5 notes the length, and so finds what was cut off
    if not h5py.is_hdf5(place.path):
        raise place.fault("not an HDF5 file; if it is compressed, decompress it first")
    with h5py.File(place.path, "r") as file:
        yield file


def names(parent: h5py.Group) -> list[str]:
    """Of its members, by numbers where they are numbers."""
    return sorted(parent, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def units(raw: str, path: Path, limit: int | None, structures: float) -> list[Unit]:
    """Every group of the file a unit, each with about so many structures."""
    with Place(path) as place, opened(place) as file:
        return [Unit(f"{below(raw, path)}: {name}", structures, path, name) for name in names(file)[:limit]]


def group(place: Place, parent: h5py.Group, name: str) -> h5py.Group:
    place.where = f"group {parent.name.rstrip('/')}/{name}".replace(" /", " ", 1)
    found = parent[name]
    if not isinstance(found, h5py.Group):
        raise place.fault("a group was expected here, this is an array: not of this dataset's layout")
    return found


def groups(place: Place, parent: h5py.Group) -> Iterator[tuple[str, h5py.Group]]:
    for name in names(parent):
        yield name, group(place, parent, name)


def array(place: Place, group: h5py.Group, key: str, shape: tuple[int | None, ...], kind: str = "f") -> np.ndarray:
    """The array, whose shape must be as said; None stands for any length. `kind`: "f", or "i" for whole numbers."""
    if key not in group:
        held = ", ".join(sorted(group)) or "nothing"
        raise place.fault(f"{key} is missing; there is {held[:300]}")
    stored = group[key]
    length = stored.shape if isinstance(stored, h5py.Dataset) else None
    if length is None or len(length) != len(shape) or any(b is not None and a != b for a, b in zip(length, shape)):
        expected = " x ".join("any" if n is None else str(n) for n in shape)
        raise place.fault(f"{key} has shape {length}, {expected} was expected: the number of atoms disagrees")
    if stored.dtype.kind not in ("f" if kind == "f" else "iu"):
        raise place.fault(f"{key} is of type {stored.dtype}")
    read = stored[()]
    return read.astype(np.float64 if kind == "f" else np.int64)
