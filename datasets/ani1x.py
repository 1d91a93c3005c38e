"""ANI-1x: 5 million off-equilibrium conformations of organic molecules with H, C, N, O.

Smith et al., Sci. Data 7, 134 (2020). One HDF5 file, a group for each formula, Hartree and Angstrom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.atoms.units import HARTREE
from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.data.formats.raw_files import Location, find_files
from gnnscale.schema import Record

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    import numpy as np

    from gnnscale.atoms.structure import Structure

FORMULAS = 3114
THEORY = {  # level -> its name, and how many conformations have it
    "wb97x_dz": ("wB97x/6-31G(d)", 4_956_005),
    "wb97x_tz": ("wB97x/def2-TZVPP", 4_956_005),
    "ccsd(t)_cbs": ("CCSD(T)*/CBS, energies only", 489_571),
}
# eV; self energies of the authors' networks (TorchANI, ANI-1x), for wb97x_dz: fitted, and 2 eV below a hydrogen atom alone
REFERENCES = {
    symbol: HARTREE * energy
    for symbol, energy in {"H": -0.60095298, "C": -38.08316124, "N": -54.7077577, "O": -75.19446356}.items()
}


class Options(Record):
    """Options of this dataset."""

    raw: str = Field(description="ani1x-release.h5 (figshare collection 4712477, 5.6 GB), or the folder with it")
    limit: int | None = Field(None, ge=1, description="use only the first formulas, at most this many")
    level: Literal["wb97x_dz", "wb97x_tz", "ccsd(t)_cbs"] = Field(
        "wb97x_dz",
        description="level of theory; forces of wb97x_tz have a net force of 13 meV/A per atom, wb97x_dz's none",
    )


def input_files(options: Options) -> list[Path]:
    return find_files(options.raw, ("*.h5", "*.hdf5"), "download ani1x-release.h5 of figshare collection 4712477")


def card(options: Options) -> DatasetCard:
    theory, count = THEORY[options.level]
    return DatasetCard(
        name="ani1x",
        title="ANI-1x: off-equilibrium organic molecules",
        theory=theory,
        citation="Smith et al., Sci. Data 7, 134 (2020), 10.1038/s41597-020-0473-z",
        licence="CC0",
        structures=round(count * min(1, (options.limit or FORMULAS) / FORMULAS)),
        atoms_per_structure=15.3,
        neighbours_per_atom=11.7,
        seconds_per_structure=0.00015,
        references=REFERENCES if options.level == "wb97x_dz" else {},
    )


def pieces(options: Options) -> list[Piece]:
    from gnnscale.data.formats import hdf5

    size = THEORY[options.level][1] / FORMULAS
    return [
        piece for path in input_files(options) for piece in hdf5.pieces_by_group(options.raw, path, options.limit, size)
    ]


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.atoms.structure import isolated_molecule
    from gnnscale.atoms.units import HARTREE
    from gnnscale.data.formats import hdf5
    from gnnscale.data.formats.plausible import PlausibilityCheck

    with Location(piece.path) as location, hdf5.open_hdf5(location) as file:
        check, formula = PlausibilityCheck(location, "atoms"), piece.key
        group = hdf5.open_group(location, file, formula)
        numbers = hdf5.read_array(location, group, "atomic_numbers", (None,), "i")
        positions = hdf5.read_array(location, group, "coordinates", (None, len(numbers), 3))
        energy = hdf5.read_array(location, group, f"{options.level}.energy", (len(positions),)) * HARTREE
        forces: Sequence[np.ndarray | None] | np.ndarray = [None] * len(positions)
        if options.level != "ccsd(t)_cbs":  # Hartree/Angstrom, and forces, not gradients
            forces = hdf5.read_array(location, group, f"{options.level}.forces", positions.shape) * HARTREE
        for k in range(len(positions)):
            if energy[k] != energy[k]:
                skip(f"no energy at {options.level}")
            else:  # isomers share a formula, so it is the formula that must not straddle splits
                label = f"{formula} conformation {k}"
                yield check(isolated_molecule(numbers, positions[k], energy[k], forces[k], formula, label))


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
