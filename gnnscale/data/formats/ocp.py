"""Graphs of the Open Catalyst Project's LMDB files, OC20 and OC22, as structures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gnnscale.atoms.structure import Structure
from gnnscale.data.formats import lmdbs
from gnnscale.data.formats.pieces import Place, Unit, ranges


def units(raw: str, paths: list[Path], limit: int | None = None) -> list[Unit]:
    """Ranges of the keys of all files, up to `limit` graphs in all."""
    listed, left = [], limit
    for path in paths:
        with Place(path) as place:
            count = lmdbs.count_records(place)
        if left is not None:
            count, left = min(count, left), left - min(count, left)
        listed += ranges(raw, path, count, "keys")
    return listed


def graphs(place: Place, span: tuple[int, int]) -> Iterator[Structure]:
    """In the order of their keys. Whether the energy is total or of adsorption, the file does not say."""
    for key, graph in lmdbs.records(place, span):
        place.where = f"key {key}"
        yield structure(place, key, graph)


def structure(place: Place, key: int, graph: lmdbs.Record) -> Structure:
    numbers = numbers_of(place, graph)
    system = graph.get("sid", f"{place.path.name} {key}")
    return Structure(
        numbers=numbers,
        positions=array(place, graph, ("pos",), (len(numbers), 3)),
        cell=array(place, graph, ("cell",), (3, 3)),
        pbc=np.ones(3, bool),  # neighbours of these graphs were searched along all three vectors
        energy=float(array(place, graph, ("y", "energy"), ())),
        forces=array(place, graph, ("force", "forces"), (len(numbers), 3)),
        stress=np.full((3, 3), np.nan),
        group=str(system),
        label=f"system {system} frame {graph.get('fid', '?')}",
    )


def numbers_of(place: Place, graph: lmdbs.Record) -> np.ndarray:
    stored = np.asarray(value(place, graph, ("atomic_numbers",))).reshape(-1)  # floating point in these files
    numbers = np.rint(stored.astype(float)).astype(np.int64)
    if not len(numbers) or np.abs(numbers - stored).max() > 1e-3:
        raise place.fault("atomic_numbers are no whole numbers, or there are none")
    return numbers


def array(place: Place, graph: lmdbs.Record, names: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    stored = np.asarray(value(place, graph, names), float)
    if stored.size != np.prod(shape, dtype=int):
        raise place.fault(f"{names[0]} has shape {stored.shape}, {shape} was expected: the number of atoms disagrees")
    return stored.reshape(shape)  # a cell is (1, 3, 3), an energy (), (1,) or a plain number


def value(place: Place, graph: lmdbs.Record, names: tuple[str, ...]) -> object:
    for name in names:
        if graph.get(name) is not None:
            return graph[name]
    raise place.fault(f"{' or '.join(names)} is missing; there is {', '.join(map(str, graph))[:300]}")
