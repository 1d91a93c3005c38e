"""Files that HydraGNN wrote through ADIOS2: graphs by key, all samples of a split one behind the other in one variable.

NAME.bp has, for each split (trainset, valset, testset) and each key of a graph, a variable SPLIT/KEY that is ragged along
one dimension, variables SPLIT/KEY/variable_count and variable_offset, and attributes SPLIT/KEY/variable_dim, SPLIT/ndata
and SPLIT/keys. There are no checksums. Only what makes a structure is read: no edges, and no more than one unit at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from gnnscale.atoms.structure import Structure
from gnnscale.data.formats.pieces import ROWS, Place, Unit, ranges
from gnnscale.data.storage import adios

if TYPE_CHECKING:
    from adios2 import FileReader

SPLITS = {"trainset": "train", "valset": "validation", "testset": "test"}
COLUMNS = {"atomic_numbers": slice(0, 1), "forces": slice(4, 7)}  # of `x`, where these have no key of their own
NEEDED = ("pos", "x", "atomic_numbers", "energy", "forces", "cell", "pbc", "stress")


def files(path: Path) -> list[Path]:
    """Of one NAME.bp; a BP4 or BP5 file is a directory."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def units(raw: str, path: Path, limit: int | None) -> list[Unit]:
    """Ranges of the samples of each split; the key says which."""
    found = []
    with Place(path) as place, adios.opened(path) as reader:
        check(place, reader)
        for label in SPLITS:
            if f"{label}/ndata" in reader.available_attributes():
                count = int(reader.read_attribute(f"{label}/ndata"))
                found += [
                    unit._replace(key=label) for unit in ranges(raw, path, min(count, limit or count), label, ROWS)
                ]
        if not found:
            raise place.fault("no trainset, valset or testset with samples; was it written by HydraGNN's AdiosWriter?")
    return [unit for unit in found if unit.structures]


def check(place: Place, reader: FileReader) -> None:
    """ADIOS2 waits for ever where a file lacks data that its index has."""
    place.where = "its size"
    sizes = {"uint8_t": 1, "int8_t": 1, "int32_t": 4, "float": 4, "int64_t": 8, "double": 8}
    needed = 0
    for about in reader.available_variables().values():
        shape = [int(n) for n in about["Shape"].split(",") if n.strip()]
        needed += int(np.prod(shape, dtype=np.int64)) * sizes.get(about["Type"], 1)
    there = sum(file.stat().st_size for file in files(place.path) if file.name.startswith("data."))
    if there < needed:
        raise place.fault(f"truncated: data of {there} bytes, the index tells of {needed}")


def structures(place: Place, unit: Unit, energy_unit: float, published: bool) -> Iterator[Structure]:
    """Of one unit. `energy_unit` in eV; forces are in it per Angstrom. With `published`, theirs is the split."""
    label, (first, end) = unit.key, unit.span
    with adios.opened(place.path) as reader:
        have = set(reader.available_variables())
        columns = {}
        for key in NEEDED:
            if f"{label}/{key}" in have:
                place.where = f"{label}/{key}"
                columns[key] = samples(place, reader, f"{label}/{key}", first, end)
        place.where = label
        for key in ("pos", "energy"):
            if key not in columns:
                keys = sorted(name.split("/")[1] for name in have if name.count("/") == 1 and name.startswith(label))
                raise place.fault(f"no {key}; there is {', '.join(keys)}")
        for k in range(end - first):
            place.where = f"{label} sample {first + k}"
            one = {key: values[k] for key, values in columns.items()}
            yield structure(place, one, energy_unit, SPLITS[label] if published else "")


def samples(place: Place, reader: FileReader, name: str, first: int, end: int) -> list[np.ndarray]:
    """Samples `first` to `end` of a variable, in one reading: they lie one behind the other."""
    ragged = int(reader.read_attribute(f"{name}/variable_dim"))
    count, offset = (reader.read(f"{name}/variable_{what}", [first], [end - first]) for what in ("count", "offset"))
    if (offset[1:] != offset[:-1] + count[:-1]).any():
        raise place.fault("its samples do not lie one behind the other")
    start, length = np.zeros(len(shape_of(reader, name)), np.int64), np.array(shape_of(reader, name))
    start[ragged], length[ragged] = offset[0], count.sum()
    if not length.all():
        return [np.zeros(np.where(np.arange(len(length)) == ragged, n, length)) for n in count]
    whole = reader.read(name, start.tolist(), length.tolist())
    return np.split(whole, np.cumsum(count)[:-1], axis=ragged)


def shape_of(reader: FileReader, name: str) -> list[int]:
    return [int(n) for n in reader.available_variables()[name]["Shape"].split(",")]


def structure(place: Place, sample: dict[str, np.ndarray], unit: float, split: str) -> Structure:
    """Molecules have the unit matrix as cell in HydraGNN, with pbc false."""
    positions = sample["pos"].reshape(-1, 3)
    parts = {
        key: sample[key] if key in sample else sample["x"][:, columns]
        for key, columns in COLUMNS.items()
        if key in sample or "x" in sample
    }
    numbers = parts.get("atomic_numbers")
    if numbers is None or numbers.size != len(positions):
        raise place.fault(f"{len(positions)} positions, {0 if numbers is None else numbers.size} atomic numbers")
    forces = parts.get("forces", np.empty((0, 3)))
    if forces.size not in (0, positions.size):
        raise place.fault(f"{len(positions)} atoms, forces of shape {forces.shape}")
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
        energy=float(sample["energy"].ravel()[0]) * unit,
        forces=forces.reshape(-1, 3).astype(np.float64) * unit if forces.size else np.full(positions.shape, np.nan),
        stress=sample["stress"].reshape(3, 3).astype(np.float64) if "stress" in sample else np.full((3, 3), np.nan),
        group=formula,
        label=f"{formula}, {place.where}",
        split=split,
    )
