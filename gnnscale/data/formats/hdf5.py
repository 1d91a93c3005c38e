"""Groups and arrays of a published HDF5 file. The only file that imports h5py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from gnnscale.data.formats.pieces import Piece
from gnnscale.data.formats.raw_files import Location, name_below
from gnnscale.data.formats.recognise import check_kind


@contextmanager
def open_hdf5(location: Location) -> Iterator[h5py.File]:
    location.where = "its beginning"  # HDF5 stores its length there, so it detects a truncated file as it opens it
    check_kind(location, "HDF5", "HDF5")
    if not h5py.is_hdf5(location.path):
        raise location.fault("not an HDF5 file; if it is compressed, decompress it first")
    with h5py.File(location.path, "r") as file:
        yield file


def member_names(parent: h5py.Group) -> list[str]:
    """Return the names of the members, in numerical order where they are numbers."""
    return sorted(parent, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def pieces_by_group(raw: str, path: Path, limit: int | None, structures: float) -> list[Piece]:
    """Return one piece per group of the file, each with about `structures` structures."""
    with Location(path) as location, open_hdf5(location) as file:
        return [
            Piece(f"{name_below(raw, path)}: {name}", structures, path, name) for name in member_names(file)[:limit]
        ]


def open_group(location: Location, parent: h5py.Group, name: str) -> h5py.Group:
    location.where = f"group {parent.name.rstrip('/')}/{name}".replace(" /", " ", 1)
    found = parent[name]
    if not isinstance(found, h5py.Group):
        raise location.fault("a group was expected here, this is an array: not of this dataset's layout")
    return found


def open_groups(location: Location, parent: h5py.Group) -> Iterator[tuple[str, h5py.Group]]:
    for name in member_names(parent):
        yield name, open_group(location, parent, name)


def find_groups(parent: h5py.Group, wanted: set[str]) -> Iterator[h5py.Group]:
    """Yield the groups that have these members, at any depth, in the order of their names."""
    if wanted <= parent.keys():
        yield parent
        return
    for name in member_names(parent):
        if parent.get(name, getclass=True) is h5py.Group:
            yield from find_groups(parent[name], wanted)


def arrays_of(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """Return the arrays of a group, which are not read yet, in the order of their names."""
    return {name: group[name] for name in member_names(group) if group.get(name, getclass=True) is h5py.Dataset}


def read_array(
    location: Location, group: h5py.Group, key: str, shape: tuple[int | None, ...], kind: str = "f"
) -> np.ndarray:
    """Read an array of this shape, in which None stands for any length. `kind` is "f", or "i" for whole numbers."""
    if key not in group:
        held = ", ".join(sorted(group)) or "nothing"
        raise location.fault(f"{key} is missing; there is {held[:300]}")
    stored = group[key]
    length = stored.shape if isinstance(stored, h5py.Dataset) else None
    if length is None or len(length) != len(shape) or any(b is not None and a != b for a, b in zip(length, shape)):
        expected = " x ".join("any" if n is None else str(n) for n in shape)
        raise location.fault(f"{key} has shape {length}, {expected} was expected: the number of atoms disagrees")
    if stored.dtype.kind not in ("f" if kind == "f" else "iu"):
        raise location.fault(f"{key} is of type {stored.dtype}")
    read = stored[()]
    return read.astype(np.float64 if kind == "f" else np.int64)
