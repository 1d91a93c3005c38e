"""OC22: oxide surfaces with adsorbates relaxing, the S2EF-Total task: 10 million frames, 51 elements.

Tran et al., ACS Catal. 13, 3066 (2023). LMDB files as published, with total energies. Slabs count as periodic along all
three vectors, as in OC20. If train/, val_id/ and val_ood/ are all below the given folder, they are the split; test_id/
and test_ood/ were published without labels and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.formats.ocp_splits import UNLABELLED, published_splits
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.data.formats.raw_files import Location, find_files
from gnnscale.schema import Record

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure

FRAMES = 8_225_293  # of the training split
DOWNLOAD = "download and unpack s2ef_total_train_val_test_lmdbs.tar.gz, named in fairchem's docs/catalysts/datasets"


class Options(Record):
    """Options of this dataset."""

    raw: str = Field(description="folder with the *.lmdb of s2ef_total_train_val_test_lmdbs.tar.gz, or one of them")
    limit: int | None = Field(None, ge=1, description="use only the first frames of each split, about this many in all")


def input_files(options: Options) -> list[Path]:
    return list(split_of_files(options))


def split_of_files(options: Options) -> dict[Path, str | None]:
    return published_splits(options.raw, find_files(options.raw, ("*.lmdb",), DOWNLOAD))


def card(options: Options) -> DatasetCard:
    return DatasetCard(
        name="oc22",
        title="OC22 S2EF-Total: oxide surfaces",
        theory="PBE+U, spin polarised, VASP; total energy",
        citation="Tran et al., ACS Catal. 13, 3066 (2023), 10.1021/acscatal.2c05426",
        licence="CC-BY 4.0",
        structures=min(FRAMES, options.limit or FRAMES),
        atoms_per_structure=79.8,
        neighbours_per_atom=27.0,
        seconds_per_structure=0.0007,
    )


def pieces(options: Options) -> list[Piece]:
    from gnnscale.data.formats import ocp

    split_of_file = split_of_files(options)
    labelled = {path: split for path, split in split_of_file.items() if split != UNLABELLED}
    return ocp.pieces_by_split(options.raw, labelled, options.limit) + ocp.pieces_by_keys(
        options.raw, [path for path in split_of_file if path not in labelled]
    )


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.data.formats import ocp
    from gnnscale.data.formats.plausible import PlausibilityCheck

    split = split_of_files(options)[piece.path]
    if split == UNLABELLED:
        for _ in range(*piece.bounds):
            skip(UNLABELLED)
        return
    with Location(piece.path) as location:
        check = PlausibilityCheck(location, "crystals")
        for structure in ocp.read_structures(location, piece.bounds):
            yield check(structure)._replace(split=split)
        check.finish()


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
