"""SPICE: 2 million conformations of drug-like molecules, dimers, peptides and ions, 17 elements.

Eastman et al., Sci. Data 10, 11 (2023) and J. Chem. Theory Comput. 20, 8583 (2024). One HDF5 file, a group for each
molecule, in Hartree and Bohr, with gradients instead of forces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.data.formats.raw_files import Location, find_files
from gnnscale.schema import Record

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    import h5py

    from gnnscale.atoms.structure import Structure

MOLECULES, CONFORMATIONS = 113_999, 2_008_628
# A charged atom in SMILES: [NH3+], [O-], [Ca+2:7], [Mg++].
CHARGED_ATOM = re.compile(r"\[[^\]]*?([+-]+)(\d*)(?::\d+)?\]")


class Options(Record):
    """Options of this dataset."""

    raw: str = Field(description="SPICE-2.0.1.hdf5 (zenodo 10975225, 37 GB) or another version, or the folder with it")
    limit: int | None = Field(None, ge=1, description="use only the first molecules, at most this many")
    charge: Literal["any", "neutral"] = Field(
        "any", description="neutral leaves out charged molecules: no model here has the charge as input"
    )


def input_files(options: Options) -> list[Path]:
    return find_files(options.raw, ("*.hdf5", "*.h5"), "download SPICE-2.0.1.hdf5 of zenodo 10975225")


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


def pieces(options: Options) -> list[Piece]:
    from gnnscale.data.formats import hdf5

    size = CONFORMATIONS / MOLECULES
    return [
        piece for path in input_files(options) for piece in hdf5.pieces_by_group(options.raw, path, options.limit, size)
    ]


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.atoms.structure import isolated_molecule
    from gnnscale.atoms.units import BOHR, HARTREE
    from gnnscale.data.formats import hdf5
    from gnnscale.data.formats.plausible import PlausibilityCheck

    with Location(piece.path) as location, hdf5.open_hdf5(location) as file:
        check, name = PlausibilityCheck(location, "atoms"), piece.key
        group = hdf5.open_group(location, file, name)
        numbers = hdf5.read_array(location, group, "atomic_numbers", (None,), "i")
        positions = hdf5.read_array(location, group, "conformations", (None, len(numbers), 3)) * BOHR
        energy = hdf5.read_array(location, group, "dft_total_energy", (len(positions),)) * HARTREE
        forces = -hdf5.read_array(location, group, "dft_total_gradient", positions.shape) * (HARTREE / BOHR)
        charged = options.charge == "neutral" and total_charge(read_smiles(location, group)) != 0
        for k in range(len(positions)):
            if charged:
                skip("charged")
            elif energy[k] != energy[k]:
                skip("no energy")
            else:
                label = f"{name} conformation {k}"
                yield check(isolated_molecule(numbers, positions[k], energy[k], forces[k], name, label))


def read_smiles(location: Location, group: h5py.Group) -> str:
    if "smiles" not in group:
        raise location.fault("smiles is missing, from which the charge is read")
    stored = group["smiles"][0]
    return stored.decode() if isinstance(stored, bytes) else str(stored)


def total_charge(smiles: str) -> int:
    """Return the sum over the charged atoms."""
    total = 0
    for signs, number in CHARGED_ATOM.findall(smiles):
        size = int(number) if number else len(signs)
        total += size if signs[0] == "+" else -size
    return total


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
