"""Graphs that HydraGNN wrote with its AdiosWriter: one NAME.bp, or a folder of them.

Edges are not read, and the splits are kept by default. These are usually random draws of frames, so conformations of one
molecule are in several splits: gnnscale.audit.duplicates counts them, and `split: formula` splits anew by whole formulas.
Energies are float32 as written: reference energies that were subtracted before (HydraGNN's energy_linear_regression.py
does so) stay subtracted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.data.formats.own_data import LabelUnits, own_data_card
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.data.formats.raw_files import OWN_FILE, Location
from gnnscale.data.formats.source_size import SourceSize

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure
    from gnnscale.contract.dataset_card import DatasetCard


class Options(LabelUnits):
    """Options of this dataset."""

    raw: str = Field(description="NAME.bp as HydraGNN wrote it, or a folder of such files")
    limit: int | None = Field(
        None, ge=1, description="use only the first samples of each split of each file, at most this many"
    )
    split: Literal["theirs", "formula"] = Field(
        "theirs", description="trainset, valset and testset as HydraGNN drew them, or by hash of the chemical formula"
    )


def bp_files(options: Options) -> list[Path]:
    path = Path(options.raw).expanduser()
    listed = [path] if path.name.endswith(".bp") else sorted(path.rglob("*.bp"))
    if not listed or not listed[0].exists():
        raise FileNotFoundError(f"{path}: no .bp file and no folder of them; give what HydraGNN's AdiosWriter wrote")
    return listed


def input_files(options: Options) -> list[Path]:
    return sorted(
        file for path in bp_files(options) for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
    )


def card(options: Options) -> DatasetCard:
    return own_data_card("hydragnn", options, 30.0, 0.0002, count=SourceSize)


def pieces(options: Options) -> list[Piece]:
    from gnnscale.data.formats import hydragnn

    return [
        piece for path in bp_files(options) for piece in hydragnn.pieces_by_samples(options.raw, path, options.limit)
    ]


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.data.formats import hydragnn
    from gnnscale.data.formats.own_structures import apply_units
    from gnnscale.data.formats.plausible import PlausibilityCheck

    with Location(piece.path, OWN_FILE) as location:
        check = PlausibilityCheck(location, options.energies)
        for structure in hydragnn.read_structures(location, piece, options.split == "theirs"):
            yield check(apply_units(options, structure))
        check.finish()


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
