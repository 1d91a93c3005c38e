"""SPICE: 2 million conformations of drug-like molecules, dimers, peptides and ions, 17 elements.

Eastman et al., Sci. Data 10, 11 (2023) and J. Chem. Theory Comput. 20, 8583 (2024). One HDF5 file, a group for each
molecule, in Hartree and Bohr, with gradients in place of forces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.formats.labels import molecule
from gnnscale.data.formats.pieces import Place, Unit, found
from gnnscale.schema import Spec

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    import h5py

    from gnnscale.atoms.structure import Structure

MOLECULES, CONFORMATIONS = 113_999, 2_008_628
BRACKET = re.compile(r"\[[^\]]*?([+-]+)(\d*)(?::\d+)?\]")  # a charged atom in SMILES: [NH3+], [O-], [Ca+2:7], [Mg++]


class Options(Spec):
    """What can be asked of this dataset."""

    raw: str = Field(description="SPICE-2.0.1.hdf5 (zenodo 10975225, 37 GB) or another version, or the folder with it")
    limit: int | None = Field(None, ge=1, description="only the first so many molecules")
    charge: Literal["any", "neutral"] = Field(
        "any", description="neutral leaves out molecules with a charge, of which no model here is told"
    )


def inputs(options: Options) -> list[Path]:
    return found(options.raw, ("*.hdf5", "*.h5"), "download SPICE-2.0.1.hdf5 of zenodo 10975225")


def card(options: Options) -> DatasetCard:
    neutral = ", neutral ones" if options.charge == "neutral" else ""
    return DatasetCard(
        name="spice",
        title=f"SPICE 2: drug-like molecules, dimers, peptides{neutral}",
        theory="wB97M-D3(BJ)/def2-TZVPPD, Psi4",
        citation="Eastman et al., Sci. Data 10, 11 (2023), 10.1038/s41597-022-01882-6; zenodo 10975225",
        licence="CC0",
        structures=round(CONFORMATIONS * min(1, (options.limit or MOLECULES) / MOLECULES)),
        atoms_per_structure=29.0,
        neighbours_per_atom=20.0,
        seconds_per_structure=0.0002,
    )


def units(options: Options) -> list[Unit]:
    from gnnscale.data.formats import hdf5

    size = CONFORMATIONS / MOLECULES
    return [unit for path in inputs(options) for unit in hdf5.units(options.raw, path, options.limit, size)]


def structures(options: Options, unit: Unit, skip: Callable[[str], None]) -> Iterator[Structure]:
    from gnnscale.atoms.units import BOHR, HARTREE
    from gnnscale.data.formats import hdf5, plausible

    with Place(unit.path) as place, hdf5.opened(place) as file:
        watch, name = plausible.Watch(place, "atoms"), unit.key
        group = hdf5.group(place, file, name)
        numbers = hdf5.array(place, group, "atomic_numbers", (None,), "i")
        positions = hdf5.array(place, group, "conformations", (None, len(numbers), 3)) * BOHR
        energy = hdf5.array(place, group, "dft_total_energy", (len(positions),)) * HARTREE
        forces = -hdf5.array(place, group, "dft_total_gradient", positions.shape) * (HARTREE / BOHR)
        charged = options.charge == "neutral" and charge(smiles(place, group)) != 0
        for k in range(len(positions)):
            if charged:
                skip("charged")
            elif energy[k] != energy[k]:
                skip("no energy")
            else:
                label = f"{name} conformation {k}"
                yield watch(molecule(numbers, positions[k], energy[k], forces[k], name, label))


def smiles(place: Place, group: h5py.Group) -> str:
    if "smiles" not in group:
        raise place.fault("smiles is missing, without which nothing tells the charge")
    stored = group["smiles"][0]
    return stored.decode() if isinstance(stored, bytes) else str(stored)


def charge(smiles: str) -> int:
    """Sum over the charged atoms."""
    total = 0
    for signs, number in BRACKET.findall(smiles):
        size = int(number) if number else len(signs)
        total += size if signs[0] == "+" else -size
    return total


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
