"""OMat24 and sAlex: inorganic crystals far from equilibrium, and near it, with stress; 89 elements.

Barroso-Luque et al., arXiv:2410.12771 (2024). Folders of .aselmdb files. Their pseudopotentials (PBE_54) are not those of
MPtrj and Alexandria: the energies are on another scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.data.formats.raw_files import Location, find_files
from gnnscale.schema import Record

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure

SUBSETS = {  # structures, atoms per structure
    "omat24 train": (100_824_585, 19.0),
    "omat24 validation": (1_025_361, 19.0),  # the one before 20 December 2024 held duplicates: fairchem#942
    "salex train": (10_447_765, 9.0),
    "salex validation": (553_218, 9.0),
}


class Options(Record):
    """Options of this dataset."""

    raw: str = Field(description="folder with *.aselmdb of OMat24 or sAlex (fairchem's docs/inorganic_materials)")
    limit: int | None = Field(None, ge=1, description="use only the first rows of each file, at most this many")
    subset: Literal["omat24 train", "omat24 validation", "salex train", "salex validation"] = Field(
        "omat24 train", description="which subset was downloaded; for the card"
    )


def input_files(options: Options) -> list[Path]:
    return find_files(
        options.raw, ("*.aselmdb",), "download a tar of OMat24 (hugging face: facebook/OMAT24) and unpack it"
    )


def card(options: Options) -> DatasetCard:
    count, atoms = SUBSETS[options.subset]
    return DatasetCard(
        name=options.subset.replace(" ", "-"),
        title=f"{options.subset}: inorganic crystals",
        theory="PBE and PBE+U, VASP, PBE_54 pseudopotentials",
        citation="Barroso-Luque et al., arXiv:2410.12771 (2024), 10.48550/arXiv.2410.12771",
        licence="CC-BY 4.0",
        structures=min(count, options.limit or count),
        atoms_per_structure=atoms,
        neighbours_per_atom=35.0,
        seconds_per_structure=0.0004,
    )


def pieces(options: Options) -> list[Piece]:
    from gnnscale.data.formats import aselmdb

    return aselmdb.pieces_by_rows(options.raw, input_files(options), options.limit)


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    """Yield structures; the group is the reduced formula, as rows do not say which were rattled from one crystal."""
    from gnnscale.data.formats import aselmdb
    from gnnscale.data.formats.plausible import PlausibilityCheck

    with Location(piece.path) as location:
        check = PlausibilityCheck(location, "crystals")
        for structure, _ in aselmdb.read_structures(location, piece.bounds, reduced=True):
            yield check(structure)
        check.finish()


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
