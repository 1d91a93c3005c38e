"""Images that ASE reads: its trajectories (.traj) by index, and text outputs of electronic-structure programs one by one.

Only formats of data are read. Pickles, which ASE's oldest trajectories hold, could execute anything and are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import ase.io
import numpy as np
from ase import Atoms
from ase.io import ulm

from gnnscale.data.formats.own_structures import OwnFrame
from gnnscale.data.formats.raw_files import Location


def count_images(location: Location) -> int:
    with ulm.open(location.path) as file:
        return len(file)


def read_trajectory(location: Location, span: tuple[int, int]) -> Iterator[tuple[str, OwnFrame]]:
    """Yield (label, frame) of a range of a trajectory's images. Elements may be written with the first image alone."""
    with ulm.open(location.path) as file:
        first = file[0].asdict()
        for number in range(*span):
            location.where = f"image {number}"
            yield location.where, to_frame(location, {**first, "calculator": {}, "info": {}, **file[number].asdict()})


def to_frame(location: Location, image: dict[str, Any]) -> OwnFrame:
    lacking = [name for name in ("numbers", "positions", "cell", "pbc") if name not in image]
    if lacking:
        raise location.fault(f"{', '.join(lacking)} is missing: no trajectory of ASE")
    atoms = len(image["numbers"])
    values = {**image["info"], **image["calculator"]}
    return OwnFrame(
        np.asarray(image["numbers"], int),
        np.asarray(image["positions"], float),
        np.asarray(image["cell"], float),
        np.asarray(image["pbc"], bool),
        values,
        {key: value for key, value in values.items() if isinstance(value, np.ndarray) and value.shape[:1] == (atoms,)},
    )


def image_frames(file: IO[str], kind: str) -> Iterator[OwnFrame]:
    """Yield the images of a text in one of ASE's formats."""
    for image in ase.io.iread(file, index=":", format=kind):
        assert isinstance(image, Atoms), f"{kind} has images"
        results = image.calc.results if image.calc else {}
        columns = {**image.arrays, **results}
        yield OwnFrame(
            image.numbers,
            image.positions,
            image.cell.array,
            image.pbc,
            {**image.info, **results},
            {key: value for key, value in columns.items() if np.shape(value)[:1] == (len(image),)},
        )
