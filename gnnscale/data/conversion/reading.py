"""Reading and checking the structures of a work item through the dataset's script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from gnnscale.atoms.structure import Structure
from gnnscale.contract.errors import BadFile
from gnnscale.data.conversion.shard_notes import Position
from gnnscale.data.conversion.work_items import Conversion, WorkItem
from gnnscale.data.formats.pieces import Piece

Origin = tuple[str, int]  # name of a piece, number of the structure in it: by which a person finds it again


def read_structures(
    conversion: Conversion, item: WorkItem, start: Position, skipped: Counter[str]
) -> Iterator[tuple[Structure, Origin, Position]]:
    """Yield the structures of a work item from `start` on, each with its origin and the position after it.

    What the script leaves out is counted in `skipped`.
    """
    for index in range(start.piece, len(item.pieces)):
        piece = item.pieces[index]
        before = start.number if index == start.piece else 0
        for number, structure in read_piece(conversion, piece, before, skipped):
            yield structure, (piece.name, number), Position(index, number + 1)


def read_piece(
    conversion: Conversion, piece: Piece, before: int, skipped: Counter[str]
) -> Iterator[tuple[int, Structure]]:
    """Yield (number, structure) without the first `before`: they, and what was left out among them, are noted already."""
    counting = not before

    def skip(reason: str) -> None:
        if counting:
            skipped[reason] += 1

    for number, structure in enumerate(conversion.script.structures(conversion.options, piece, skip)):
        if number < before:
            counting = number == before - 1
        else:
            yield number, structure


def check_structure(structure: Structure, origin: Origin) -> None:
    """Raise BadFile if shapes disagree or a position is not finite. A label may be NaN where it is lacking."""
    where = f"{origin[0]} number {origin[1]}"
    atoms = len(structure.numbers)
    if not atoms or structure.positions.shape != (atoms, 3) or structure.forces.shape != (atoms, 3):
        raise BadFile(
            f"{where}: {atoms} atoms, but positions {structure.positions.shape} and forces {structure.forces.shape}",
            "correct the dataset's script",
        )
    if structure.is_reference and atoms > 1:
        raise BadFile(f"{where}: a reference is one atom, and there are {atoms}", "correct the dataset's script")
    if not np.isfinite(structure.positions).all() or not np.isfinite(structure.cell).all():
        raise BadFile(f"{where}: a position or the cell is not finite", "correct the file, or the dataset's script")
