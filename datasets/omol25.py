"""OMol25: 100 million molecules, metal complexes, electrolytes and biomolecules, charged and open-shell ones included.

Levine et al., arXiv:2505.08762 (2025). Folders of .aselmdb files, eV and Angstrom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.formats.pieces import Place, Unit, found
from gnnscale.schema import Spec

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure

SUBSETS = {"train": 101_666_280, "train_4M": 3_986_754, "val": 2_762_021}


class Options(Spec):
    """What can be asked of this dataset."""

    raw: str = Field(description="folder with *.aselmdb of OMol25 (hugging face: facebook/OMol25, on request)")
    limit: int | None = Field(None, ge=1, description="only the first so many rows of each file")
    subset: Literal["train", "train_4M", "val"] = Field("train_4M", description="which was downloaded; for the card")
    charge: Literal["any", "neutral"] = Field(
        "any", description="neutral leaves out charged and open-shell ones, of which no model here is told"
    )


def inputs(options: Options) -> list[Path]:
    return found(options.raw, ("*.aselmdb",), "download a subset of OMol25 (hugging face: facebook/OMol25)")


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


def units(options: Options) -> list[Unit]:
    from gnnscale.data.formats import aselmdb

    return aselmdb.units(options.raw, inputs(options), options.limit)


def structures(options: Options, unit: Unit, skip: Callable[[str], None]) -> Iterator[Structure]:
    """The group is the formula: conformers of a molecule share it."""
    from gnnscale.data.formats import aselmdb, plausible

    with Place(unit.path) as place:
        watch = plausible.Watch(place, "atoms")
        for structure, data in aselmdb.structures(place, unit.span, reduced=False):
            if options.charge == "neutral" and not {"charge", "spin"} <= data.keys():
                raise place.fault(f"no charge and spin in the row's data; there is {', '.join(data) or 'nothing'}")
            if options.charge == "neutral" and (data["charge"] != 0 or data["spin"] != 1):
                skip("charged or open-shell")
            else:
                yield watch(structure)


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
