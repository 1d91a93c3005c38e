"""Graphs that HydraGNN wrote with its AdiosWriter: one NAME.bp, or a folder of them.

Their edges are left behind, their splits kept unless asked otherwise. Those are random draws of frames as a rule, so that
conformations of one molecule are on both sides: gnnscale.audit.duplicates counts them, and `split: formula` makes new ones by
whole formulas. Energies are float32 there, as written: what was taken off before (HydraGNN's energy_linear_regression.py
does that) stays off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.data.formats.labels import ENERGIES
from gnnscale.data.formats.own_data import OwnOptions, own_card
from gnnscale.data.formats.pieces import Place, Unit

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure
    from gnnscale.contract.dataset_card import DatasetCard


class Options(OwnOptions):
    """What can be asked of this dataset."""

    raw: str = Field(description="NAME.bp as HydraGNN wrote it, or a folder of such")
    limit: int | None = Field(None, ge=1, description="only the first so many samples of each split of each file")
    energy_unit: Literal["eV", "Hartree", "kcal/mol", "kJ/mol", "meV"] = Field(
        "eV", description="of the energy; forces are in this per Angstrom"
    )
    split: Literal["theirs", "formula"] = Field(
        "theirs", description="trainset, valset and testset as they are, or anew, by hash of the chemical formula"
    )
    energies: Literal["any", "atoms", "crystals"] = Field("any", description=ENERGIES)


def bp(options: Options) -> list[Path]:
    path = Path(options.raw).expanduser()
    listed = [path] if path.name.endswith(".bp") else sorted(path.rglob("*.bp"))
    if not listed or not listed[0].exists():
        raise FileNotFoundError(f"{path}: no such .bp, nor a folder of them; give what HydraGNN's AdiosWriter wrote")
    return listed


def inputs(options: Options) -> list[Path]:
    return sorted(
        file for path in bp(options) for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
    )


def card(options: Options) -> DatasetCard:
    return own_card("hydragnn", options, neighbours=30.0, seconds=0.0002)


def units(options: Options) -> list[Unit]:
    from gnnscale.data.formats import hydragnn

    return [unit for path in bp(options) for unit in hydragnn.units(options.raw, path, options.limit)]


def structures(options: Options, unit: Unit, skip: Callable[[str], None]) -> Iterator[Structure]:
    from gnnscale.atoms.units import ENERGY
    from gnnscale.data.formats import hydragnn, plausible

    with Place(unit.path) as place:
        watch = plausible.Watch(place, None if options.energies == "any" else options.energies)
        for structure in hydragnn.structures(place, unit, ENERGY[options.energy_unit], options.split == "theirs"):
            yield watch(structure)
        watch.done()


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
