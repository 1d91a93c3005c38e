"""OC22: oxide surfaces with adsorbates relaxing, the S2EF-Total task: 10 million frames, 51 elements.

Tran et al., ACS Catal. 13, 3066 (2023). LMDB files as published, whose energies are total ones. Slabs count as periodic
along all three vectors, as in OC20. Where train/, val_id/ and val_ood/ are all below the folder they are the split; what
is in test_id/ and test_ood/ was published without labels, and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.formats.pieces import UNLABELLED, Place, Unit, found, split_folders
from gnnscale.schema import Spec

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure

FRAMES = 8_225_293  # of the training split
DOWNLOAD = "download and unpack s2ef_total_train_val_test_lmdbs.tar.gz, named in fairchem's docs/catalysts/datasets"


class Options(Spec):
    """What can be asked of this dataset."""

    raw: str = Field(description="folder with the *.lmdb of s2ef_total_train_val_test_lmdbs.tar.gz, or one of them")
    limit: int | None = Field(None, ge=1, description="only the first so many frames")


def inputs(options: Options) -> list[Path]:
    return list(splits(options))


def splits(options: Options) -> dict[Path, str]:
    return split_folders(options.raw, found(options.raw, ("*.lmdb",), DOWNLOAD))


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


def units(options: Options) -> list[Unit]:
    from gnnscale.data.formats import ocp

    told = splits(options)
    labelled = ocp.units(options.raw, [path for path in told if told[path] != UNLABELLED], options.limit)
    return labelled + ocp.units(options.raw, [path for path in told if told[path] == UNLABELLED])


def structures(options: Options, unit: Unit, skip: Callable[[str], None]) -> Iterator[Structure]:
    from gnnscale.data.formats import ocp, plausible

    split = splits(options)[unit.path]
    if split == UNLABELLED:
        for _ in range(*unit.span):
            skip(UNLABELLED)
        return
    with Place(unit.path) as place:
        watch = plausible.Watch(place, "crystals")
        for structure in ocp.graphs(place, unit.span):
            yield watch(structure)._replace(split=split)
        watch.done()


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
