"""Your own structures in files that ASE reads: .traj, .db, .json, .aselmdb, VASP's vasprun.xml and OUTCAR, and outputs of others.

Energies in eV, lengths in Angstrom, as ASE converts them. Steps of a trajectory or a run of VASP are a group by default,
as neighbouring ones are nearly equal. Of a vasprun.xml with an OUTCAR beside it, only vasprun.xml is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.data.formats.own_data import (
    NOT_READ,
    LabelKeys,
    find_own_files,
    list_pieces,
    own_data_card,
    skip_unread_files,
)
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.data.formats.raw_files import OWN_FILE, Location
from gnnscale.data.formats.source_size import SourceSize, measure_ase, measure_files
from gnnscale.data.formats.vasp_names import without_twins

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure
    from gnnscale.contract.dataset_card import DatasetCard

PATTERNS = ("*.traj", "*.db", "*.json", "*.aselmdb", "*vasprun*.xml*", "*OUTCAR*", "*.zip")


class Options(LabelKeys):
    """Options of this dataset."""

    raw: str = Field(description="a file that ASE reads, a zip archive with runs of VASP, or a folder of such files")
    limit: int | None = Field(None, ge=1, description="use only the first structures of each file, at most this many")
    format: Literal[
        "abinit-out", "aims-output", "castep-castep", "espresso-out", "gaussian-out", "gpaw-out", "nwchem-out",
        "onetep-out", "orca-output", "qbox", "vasp-out",
    ] | None = Field(None, description="ASE's name of a text format; null = recognised by the first bytes")  # fmt: skip
    files: str = Field("*", description="with `format`: pattern of the names of the files in the folder, such as *.out")


def input_files(options: Options) -> list[Path]:
    advice = f"give the path of a file that ASE reads ({' '.join(PATTERNS)}), or of a folder of them"
    patterns = PATTERNS if options.format is None else (options.files,)
    return without_twins(find_own_files(options.raw, options.isolated_atoms, patterns, advice))


def card(options: Options) -> DatasetCard:
    def count() -> SourceSize:
        return measure_files(input_files(options), options.limit, measure_ase)

    return own_data_card("ase_files", options, 30.0, 0.001, count)


def pieces(options: Options) -> list[Piece]:
    """Return ranges of a trajectory's images or of a database's rows, and a run of VASP or any other file as a whole."""
    from gnnscale.data.formats import ase_files
    from gnnscale.data.formats.structure_counts import StructureCounts

    counts = StructureCounts()

    def list_of_file(location: Location) -> list[Piece]:
        return ase_files.pieces_of_file(options.raw, location, options.format, options.limit, counts)

    return list_pieces(options, input_files(options), list_of_file)


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.data.formats import ase_files
    from gnnscale.data.formats.own_structures import to_structures

    if piece.key == NOT_READ:
        skip_unread_files(options.raw, input_files(options), skip)
        return
    with Location(piece.path, OWN_FILE) as location:
        frames = ase_files.read_frames(options.raw, location, piece, options.format, options.limit, skip)
        yield from to_structures(options, location, piece, frames)


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
