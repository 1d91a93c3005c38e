"""Your own or published molecules in HDF5 as pyanitools writes it: ANI-1, ANI-2x, ANI-1ccx, COMP6.

Groups at any depth with `species`, `coordinates`, `energies` and perhaps `forces`; Hartree and Angstrom. The forces of COMP6
are gradients: set forces_are: gradients. Conformations of one molecule, or of one formula where a group has several, are
a group. What ANI-1 keeps apart as of high energy (names that end in HE) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from gnnscale.data.formats.own_data import (
    NOT_READ,
    EnergyUnit,
    LabelKeys,
    find_own_files,
    list_pieces,
    own_data_card,
    skip_unread_files,
)
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.data.formats.raw_files import OWN_FILE, Location
from gnnscale.data.formats.source_size import SourceSize, measure_files, measure_hdf5

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure
    from gnnscale.contract.dataset_card import DatasetCard


class Options(LabelKeys):
    """Options of this dataset."""

    raw: str = Field(description="an HDF5 file such as ani_gdb_s01.h5 or ANI-2x-wB97X-631Gd.h5, or a folder of them")
    limit: int | None = Field(None, ge=1, description="use only the first groups of each file, at most this many")
    energy: str = Field("energies", description="name of the array of energies, such as energies")
    energy_unit: EnergyUnit = Field("Hartree", description="unit of the energies")


def input_files(options: Options) -> list[Path]:
    advice = "give the path of an HDF5 file or of a folder of them"
    return find_own_files(options.raw, options.isolated_atoms, ("*.h5", "*.hdf5"), advice)


def card(options: Options) -> DatasetCard:
    def count() -> SourceSize:
        return measure_files(input_files(options), options.limit, measure_hdf5)

    return own_data_card("pyanitools", options, 12.0, 0.0002, count)


def pieces(options: Options) -> list[Piece]:
    from gnnscale.data.formats import ani_groups

    def list_of_file(location: Location) -> list[Piece]:
        return ani_groups.pieces_by_conformations(options.raw, location, options.limit)

    return list_pieces(options, input_files(options), list_of_file)


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.data.formats import ani_groups
    from gnnscale.data.formats.own_structures import to_structures

    if piece.key == NOT_READ:
        skip_unread_files(options.raw, input_files(options), skip)
        return
    with Location(piece.path, OWN_FILE) as location:
        frames = ani_groups.read_frames(options.raw, location, piece, skip)
        yield from to_structures(options, location, piece, frames)


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
