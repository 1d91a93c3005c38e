"""QM7-X: 4.2 million conformations of molecules with up to 7 heavy atoms, relaxed and displaced; H, C, N, O, S, Cl.

Hoja et al., Sci. Data 8, 43 (2021). Eight HDF5 files, groups molecule/conformation, eV and Angstrom. Energies are
total, of all electrons: -1e3 to -3e4 eV, where single precision has steps of 2 meV.
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

MOLECULES, CONFORMATIONS = 6950, 4_195_237
DOWNLOAD = "download 1000.xz to 8000.xz and DupMols.dat of zenodo 4288677, and decompress: xz -dc 1000.xz > 1000.hdf5"
LABELS = {"PBE0+MBD": ("ePBE0+MBD", "totFOR"), "PBE0": ("ePBE0", "pbe0FOR")}  # energies and their own forces

REFERENCES = {  # eV, isolated atoms in PBE0 (as SchNetPack's script has them); alone they have no dispersion
    "H": -13.641404161,
    "C": -1027.592489146,
    "N": -1484.274819088,
    "O": -2039.734879322,
    "S": -10828.707468187,
    "Cl": -12516.444619523,
}


class Options(Record):
    """Options of this dataset."""

    raw: str = Field(description="folder with 1000.hdf5 to 8000.hdf5 (zenodo 4288677, after xz -dc), or one of them")
    limit: int | None = Field(None, ge=1, description="use only the first molecules of each file, at most this many")
    level: Literal["PBE0+MBD", "PBE0"] = Field(
        "PBE0+MBD", description="energies and forces with many-body dispersion or without"
    )
    duplicates: Literal["drop", "keep"] = Field(
        "drop", description="conformers that another group has too, and their displacements: drop needs DupMols.dat"
    )


def input_files(options: Options) -> list[Path]:
    listed = find_files(options.raw, ("*.hdf5",), DOWNLOAD)
    return [*listed, duplicates_file(listed[0])] if options.duplicates == "drop" else listed


def duplicates_file(path: Path) -> Path:
    listed = sorted(path.parent.glob("DupMols*.dat"))
    if not listed:
        raise FileNotFoundError(f"{path.parent / 'DupMols.dat'}: missing; {DOWNLOAD}; or set duplicates: keep")
    return listed[0]


def card(options: Options) -> DatasetCard:
    return DatasetCard(
        name="qm7x",
        title="QM7-X: small molecules, relaxed and displaced",
        theory=f"{options.level}, tight, FHI-aims, all electrons",
        citation="Hoja et al., Sci. Data 8, 43 (2021), 10.1038/s41597-021-00812-2",
        licence="CC-BY 4.0",
        structures=round(CONFORMATIONS * min(1, 8 * (options.limit or MOLECULES) / MOLECULES)),
        atoms_per_structure=16.8,
        neighbours_per_atom=13.0,
        seconds_per_structure=0.0009,
        references=REFERENCES,
    )


def pieces(options: Options) -> list[Piece]:
    """Return one piece per molecule."""
    from gnnscale.data.formats import hdf5

    listed = [path for path in input_files(options) if path.suffix == ".hdf5"]
    size = CONFORMATIONS / MOLECULES
    return [piece for path in listed for piece in hdf5.pieces_by_group(options.raw, path, options.limit, size)]


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.atoms.structure import isolated_molecule
    from gnnscale.data.formats import hdf5
    from gnnscale.data.formats.plausible import PlausibilityCheck

    dropped = set()
    if options.duplicates == "drop":  # Geom-m1-i1-c1-opt stands for all Geom-m1-i1-c1-*
        dropped = {line.rsplit("-", 1)[0] for line in duplicates_file(piece.path).read_text().split()}
    key, forces_key = LABELS[options.level]
    with Location(piece.path) as location, hdf5.open_hdf5(location) as file:
        check, identity = PlausibilityCheck(location, "atoms"), piece.key
        for name, group in hdf5.open_groups(location, hdf5.open_group(location, file, identity)):
            if name.rsplit("-", 1)[0] in dropped:
                skip("listed as duplicate in DupMols.dat")
                continue
            numbers = hdf5.read_array(location, group, "atNUM", (None,), "i")
            positions = hdf5.read_array(location, group, "atXYZ", (len(numbers), 3))
            (energy,) = hdf5.read_array(location, group, key, (1,))
            forces = hdf5.read_array(location, group, forces_key, (len(numbers), 3))
            yield check(isolated_molecule(numbers, positions, energy, forces, identity, f"{identity} {name}"))


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
