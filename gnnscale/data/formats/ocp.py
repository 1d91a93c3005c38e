"""Structures from the LMDB files of the Open Catalyst Project, OC20 and OC22."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gnnscale.atoms.structure import Structure
from gnnscale.data.formats import lmdbs
from gnnscale.data.formats.pieces import Piece, pieces_by_range
from gnnscale.data.formats.raw_files import Location


def pieces_by_keys(raw: str, paths: list[Path], limit: int | None = None) -> list[Piece]:
    """Divide the keys of all files into pieces, up to `limit` graphs in total."""
    listed, left = [], limit
    for path in paths:
        count = count_keys(path)
        if left is not None:
            count, left = min(count, left), left - min(count, left)
        listed += pieces_by_range(raw, path, count, "keys")
    return listed


def pieces_by_split(raw: str, split_of_file: dict[Path, str | None], limit: int | None) -> list[Piece]:
    """Divide the keys of all files into pieces, up to `limit` graphs with the same share of each split."""
    shares = share_limit(split_of_file, limit, count_keys)
    return [
        piece
        for split, share in shares.items()
        for piece in pieces_by_keys(raw, [path for path in split_of_file if split_of_file[path] == split], share)
    ]


def share_limit(
    split_of_file: dict[Path, str | None], limit: int | None, count: Callable[[Path], int]
) -> dict[str | None, int | None]:
    """Divide a limit among the splits in proportion to the frames of their files, so that none of them is lost."""
    splits = dict.fromkeys(split_of_file.values())
    if limit is None or len(splits) < 2:
        return dict.fromkeys(splits, limit)
    counts = {path: count(path) for path in split_of_file}
    sizes = {split: sum(counts[path] for path in counts if split_of_file[path] == split) for split in splits}
    return {split: math.ceil(limit * size / max(1, sum(counts.values()))) for split, size in sizes.items()}


def count_keys(path: Path) -> int:
    with Location(path) as location:
        return lmdbs.count_records(location)


def read_structures(location: Location, span: tuple[int, int]) -> Iterator[Structure]:
    """Yield structures in the order of their keys. The file does not say if energies are total or of adsorption."""
    for key, graph in lmdbs.read_records(location, span):
        location.where = f"key {key}"
        yield to_structure(location, key, graph)


def to_structure(location: Location, key: int, graph: lmdbs.RawRecord) -> Structure:
    numbers = atomic_numbers_of(location, graph)
    system = graph.get("sid", f"{location.path.name} {key}")
    return Structure(
        numbers=numbers,
        positions=to_array(location, graph, ("pos",), (len(numbers), 3)),
        cell=to_array(location, graph, ("cell",), (3, 3)),
        pbc=np.ones(3, bool),  # neighbours of these graphs were searched along all three vectors
        energy=float(to_array(location, graph, ("y", "energy"), ())),
        forces=to_array(location, graph, ("force", "forces"), (len(numbers), 3)),
        stress=np.full((3, 3), np.nan),
        group=str(system),
        label=f"system {system} frame {graph.get('fid', '?')}",
    )


def atomic_numbers_of(location: Location, graph: lmdbs.RawRecord) -> np.ndarray:
    stored = np.asarray(get_value(location, graph, ("atomic_numbers",))).reshape(-1)  # floating point in these files
    numbers = np.rint(stored.astype(float)).astype(np.int64)
    if not len(numbers) or np.abs(numbers - stored).max() > 1e-3:
        raise location.fault("atomic_numbers are no whole numbers, or there are none")
    return numbers


def to_array(location: Location, graph: lmdbs.RawRecord, names: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    stored = np.asarray(get_value(location, graph, names), float)
    if stored.size != np.prod(shape, dtype=int):
        raise location.fault(
            f"{names[0]} has shape {stored.shape}, {shape} was expected: the number of atoms disagrees"
        )
    return stored.reshape(shape)  # a cell is (1, 3, 3), an energy (), (1,) or a plain number


def get_value(location: Location, graph: lmdbs.RawRecord, names: tuple[str, ...]) -> object:
    for name in names:
        if graph.get(name) is not None:
            return graph[name]
    raise location.fault(f"{' or '.join(names)} is missing; there is {', '.join(map(str, graph))[:300]}")
