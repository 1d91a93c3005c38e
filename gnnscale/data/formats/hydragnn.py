"""Structures from files that HydraGNN wrote through ADIOS2: for each key of a graph, one variable holds all samples.

NAME.bp has, for each split (trainset, valset, testset) and each key of a graph, a variable SPLIT/KEY that is ragged along
one dimension, variables SPLIT/KEY/variable_count and variable_offset, and attributes SPLIT/KEY/variable_dim, SPLIT/ndata
and SPLIT/keys. There are no checksums. Edges are not read, and no more than one piece is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from gnnscale.atoms.structure import SplitName, Structure
from gnnscale.data.formats.pieces import ROWS_PER_PIECE, Piece, pieces_by_range
from gnnscale.data.formats.raw_files import Location
from gnnscale.data.storage import adios

if TYPE_CHECKING:
    from adios2 import FileReader

SPLITS: dict[str, SplitName] = {"trainset": "train", "valset": "validation", "testset": "test"}
COLUMNS = {"atomic_numbers": slice(0, 1), "forces": slice(4, 7)}  # of `x`, where these have no key
KEYS = ("pos", "x", "atomic_numbers", "energy", "forces", "cell", "pbc", "stress")


def list_files(path: Path) -> list[Path]:
    """Return the files of one NAME.bp; a BP4 or BP5 file is a directory."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def pieces_by_samples(raw: str, path: Path, limit: int | None) -> list[Piece]:
    """Divide the samples of each split into pieces, whose key is the split."""
    found: list[Piece] = []
    with Location(path) as location, adios.open_bp(path) as reader:
        check_size(location, reader)
        for label in SPLITS:
            if f"{label}/ndata" in reader.available_attributes():
                count = int(reader.read_attribute(f"{label}/ndata"))
                parts = pieces_by_range(raw, path, min(count, limit or count), label, ROWS_PER_PIECE)
                found += [piece._replace(key=label) for piece in parts]
        if not found:
            raise location.fault(
                "no trainset, valset or testset with samples; was it written by HydraGNN's AdiosWriter?"
            )
    return [piece for piece in found if piece.structures]


def check_size(location: Location, reader: FileReader) -> None:
    """Raise if the file is shorter than its index requires: ADIOS2 would wait forever for the data."""
    location.where = "its size"
    sizes = {"uint8_t": 1, "int8_t": 1, "int32_t": 4, "float": 4, "int64_t": 8, "double": 8}
    needed = 0
    for about in reader.available_variables().values():
        shape = [int(n) for n in about["Shape"].split(",") if n.strip()]
        needed += int(np.prod(shape, dtype=np.int64)) * sizes.get(about["Type"], 1)
    there = sum(file.stat().st_size for file in list_files(location.path) if file.name.startswith("data."))
    if there < needed:
        raise location.fault(f"truncated: data of {there} bytes, the index describes {needed}")


def read_structures(location: Location, piece: Piece, published: bool) -> Iterator[Structure]:
    """Yield the structures of one piece in the units of the file. With `published` the split is HydraGNN's."""
    label, (first, end) = piece.key, piece.bounds
    with adios.open_bp(location.path) as reader:
        have = set(reader.available_variables())
        columns = {}
        for key in KEYS:
            if f"{label}/{key}" in have:
                location.where = f"{label}/{key}"
                columns[key] = read_samples(location, reader, f"{label}/{key}", first, end)
        location.where = label
        for key in ("pos", "energy"):
            if key not in columns:
                keys = sorted(name.split("/")[1] for name in have if name.count("/") == 1 and name.startswith(label))
                raise location.fault(f"no {key}; there is {', '.join(keys)}")
        for k in range(end - first):
            location.where = f"{label} sample {first + k}"
            one = {key: values[k] for key, values in columns.items()}
            yield to_structure(location, one, SPLITS[label] if published else None)


def read_samples(location: Location, reader: FileReader, name: str, first: int, end: int) -> list[np.ndarray]:
    """Read the samples `first` to `end` of a variable at once: they lie one after another."""
    ragged = int(reader.read_attribute(f"{name}/variable_dim"))
    count, offset = (reader.read(f"{name}/variable_{what}", [first], [end - first]) for what in ("count", "offset"))
    if (offset[1:] != offset[:-1] + count[:-1]).any():
        raise location.fault("its samples do not lie one after another")
    start, length = np.zeros(len(shape_of(reader, name)), np.int64), np.array(shape_of(reader, name))
    start[ragged], length[ragged] = offset[0], count.sum()
    if not length.all():
        return [np.zeros(np.where(np.arange(len(length)) == ragged, n, length)) for n in count]
    whole = reader.read(name, start.tolist(), length.tolist())
    return np.split(whole, np.cumsum(count)[:-1], axis=ragged)


def shape_of(reader: FileReader, name: str) -> list[int]:
    return [int(n) for n in reader.available_variables()[name]["Shape"].split(",")]


def to_structure(location: Location, sample: dict[str, np.ndarray], split: SplitName | None) -> Structure:
    """Convert a sample. HydraGNN gives molecules the unit matrix as cell, with pbc false."""
    positions = sample["pos"].reshape(-1, 3)
    parts = {
        key: sample[key] if key in sample else sample["x"][:, columns]
        for key, columns in COLUMNS.items()
        if key in sample or "x" in sample
    }
    numbers = parts.get("atomic_numbers")
    if numbers is None or numbers.size != len(positions):
        raise location.fault(f"{len(positions)} positions, {0 if numbers is None else numbers.size} atomic numbers")
    forces = parts.get("forces", np.empty((0, 3)))
    if forces.size not in (0, positions.size):
        raise location.fault(f"{len(positions)} atoms, forces of shape {forces.shape}")
    numbers = numbers.ravel().astype(np.int64)
    cell = sample.get("cell", np.zeros((3, 3))).reshape(3, 3).astype(np.float64)
    box = "cell" in sample and not np.array_equal(cell, np.eye(3))
    pbc = sample["pbc"].ravel() != 0 if "pbc" in sample else np.full(3, box)
    formula = Atoms(numbers).get_chemical_formula()
    return Structure(
        numbers=numbers,
        positions=positions.astype(np.float64),
        cell=cell if pbc.any() else np.zeros((3, 3)),
        pbc=pbc,
        energy=float(sample["energy"].ravel()[0]),
        forces=forces.reshape(-1, 3).astype(np.float64) if forces.size else np.full(positions.shape, np.nan),
        stress=sample["stress"].reshape(3, 3).astype(np.float64) if "stress" in sample else np.full((3, 3), np.nan),
        group=formula,
        label=f"{formula}, {location.where}",
        split=split,
    )
