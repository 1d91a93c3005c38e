"""Your own or published structures in JSON as pymatgen writes them, the layout of mlearn and maml.

Lists of {structure, outputs: {energy, forces, stress}, group, tags} (Zuo et al., J. Phys. Chem. A 124, 731 (2020)); eV, and
stress as VASP prints it. Labels may also stand beside the structure. Files with `test` in their name are the published test set.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.data.formats.own_data import (
    NOT_READ,
    LabelKeys,
    StressUnit,
    find_own_files,
    list_pieces,
    own_data_card,
    skip_unread_files,
)
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.data.formats.raw_files import OWN_FILE, Location, name_below
from gnnscale.data.formats.source_size import SourceSize, measure_files, measure_list

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure
    from gnnscale.contract.dataset_card import DatasetCard


class Options(LabelKeys):
    """Options of this dataset."""

    raw: str = Field(description="a file .json (.json.gz, .json.bz2) with a list of structures, or a folder of them")
    limit: int | None = Field(None, ge=1, description="use only the first structures of each file, at most this many")
    stress_unit: StressUnit = Field("kbar", description="unit of the stress")
    stress_positive_in: Literal["tension", "compression"] = Field(
        "compression", description="sign of the stress: compression, as VASP prints it, or tension"
    )
    stress_order: Literal["ase", "vasp"] = Field(
        "vasp", description="order of a stress of six numbers: vasp = xx yy zz xy yz zx, ase = xx yy zz yz xz xy"
    )
    split_by_file: bool = Field(
        True, description="where a file has the word test in its name, those are the test set, and others for training"
    )


def input_files(options: Options) -> list[Path]:
    advice = "give the path of a JSON file with a list of pymatgen's structures, or of a folder of them"
    return find_own_files(options.raw, options.isolated_atoms, ("*.json", "*.json.gz", "*.json.bz2"), advice)


def card(options: Options) -> DatasetCard:
    def count() -> SourceSize:
        return measure_files(input_files(options), options.limit, measure_list)

    return own_data_card("pymatgen_json", options, 50.0, 0.0005, count)


def pieces(options: Options) -> list[Piece]:
    """Return each file as one piece: JSON can only be read from its beginning."""
    from gnnscale.data.formats import crystaljson
    from gnnscale.data.formats.structure_counts import StructureCounts

    counts = StructureCounts()

    def list_of_file(location: Location) -> list[Piece]:
        path = location.path
        count = counts(path.suffix, path, partial(crystaljson.count_in, location, b'"sites"'))
        return [Piece(name_below(options.raw, path), min(count, options.limit or count), path)]

    return list_pieces(options, input_files(options), list_of_file)


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.data.formats import structure_lists
    from gnnscale.data.formats.own_structures import to_structures

    if piece.key == NOT_READ:
        skip_unread_files(options.raw, input_files(options), skip)
        return
    with Location(piece.path, OWN_FILE) as location:
        frames = structure_lists.read_frames(options.raw, location, options.limit, skip)
        yield from to_structures(options, location, piece, frames)


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
