"""OMol25: 100 million molecules, metal complexes, electrolytes and biomolecules, charged and open-shell ones included.

Levine et al., arXiv:2505.08762 (2025). Folders of .aselmdb files, eV and Angstrom.
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

SUBSETS = {"train": 101_666_280, "train_4M": 3_986_754, "val": 2_762_021}


class Options(Record):
    """Options of this dataset."""

    raw: str = Field(description="folder with *.aselmdb of OMol25 (hugging face: facebook/OMol25, on request)")
    limit: int | None = Field(None, ge=1, description="use only the first rows of each file, at most this many")
    subset: Literal["train", "train_4M", "val"] = Field(
        "train_4M", description="which subset was downloaded; for the card"
    )
    charge: Literal["any", "neutral"] = Field(
        "any",
        description="neutral leaves out charged and open-shell molecules: no model here has charge or spin as input",
    )


def input_files(options: Options) -> list[Path]:
    return find_files(options.raw, ("*.aselmdb",), "download a subset of OMol25 (hugging face: facebook/OMol25)")


def card(options: Options) -> DatasetCard:
    neutral = ", neutral singlets" if options.charge == "neutral" else ""
    return DatasetCard(
        name="omol25",
        title=f"OMol25 {options.subset}: molecules of all kinds{neutral}",
        theory="wB97M-V/def2-TZVPD, ORCA",
        citation="Levine et al., arXiv:2505.08762 (2025), 10.48550/arXiv.2505.08762",
        licence="CC-BY 4.0",
        structures=min(SUBSETS[options.subset], options.limit or SUBSETS[options.subset]),
        atoms_per_structure=50.0,
        neighbours_per_atom=20.0,
        seconds_per_structure=0.0004,
    )


def pieces(options: Options) -> list[Piece]:
    from gnnscale.data.formats import aselmdb

    return aselmdb.pieces_by_rows(options.raw, input_files(options), options.limit)


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    """Yield structures; the group is the formula, which conformers of a molecule share."""
    from gnnscale.data.formats import aselmdb
    from gnnscale.data.formats.plausible import PlausibilityCheck

    with Location(piece.path) as location:
        check = PlausibilityCheck(location, "atoms")
        for structure, data in aselmdb.read_structures(location, piece.bounds, reduced=False):
            if options.charge == "neutral" and not {"charge", "spin"} <= data.keys():
                raise location.fault(f"no charge and spin in the row's data; there is {', '.join(data) or 'nothing'}")
            if options.charge == "neutral" and (data["charge"] != 0 or data["spin"] != 1):
                skip("charged or open-shell")
            else:
                yield check(structure)


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
