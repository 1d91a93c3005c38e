"""Options, files and card of the user's own data, shared by the scripts that read it.

Light to import: the planner imports it, on a login node, through these scripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.contract.errors import UserError
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.data.formats.raw_files import OWN_FILE, Location, find_files, name_below
from gnnscale.data.formats.recognise import describe_folder
from gnnscale.data.formats.source_size import SourceSize
from gnnscale.schema import Record

if TYPE_CHECKING:  # it needs NumPy
    from gnnscale.atoms.structure import SplitName

EnergyUnit = Literal["eV", "Hartree", "kcal/mol", "kJ/mol", "meV", "Rydberg"]
LengthUnit = Literal["Angstrom", "Bohr", "nm"]
ForceUnit = Literal[
    "eV/Angstrom", "eV/Bohr", "eV/nm",
    "Hartree/Angstrom", "Hartree/Bohr", "Hartree/nm",
    "kcal/mol/Angstrom", "kcal/mol/Bohr", "kcal/mol/nm",
    "kJ/mol/Angstrom", "kJ/mol/Bohr", "kJ/mol/nm",
    "meV/Angstrom", "meV/Bohr", "meV/nm",
    "Rydberg/Angstrom", "Rydberg/Bohr", "Rydberg/nm",
]  # fmt: skip
StressUnit = Literal["eV/Angstrom^3", "GPa", "kbar", "Hartree/Bohr^3"]

SPLIT_WORDS: dict[str, SplitName] = {
    "train": "train", "training": "train", "trainset": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "valset": "validation", "dev": "validation",
    "test": "test", "testing": "test", "testset": "test",
}  # fmt: skip
NO_LABEL = "none"  # as the name of a label: this label is left out
NOT_READ = "files that are not read"  # key of the piece that counts them


class OwnDataOptions(Record):
    """Facts about the user's own data that only the user can state, for its card and for checks."""

    title: str = Field("structures of our own", description="one line for tables and figures")
    theory: str = Field("not stated", description="level of theory of the labels, for the card")
    citation: str = Field("not stated", description="where they were published, for the card")
    licence: str = Field("not stated", description="under which they may be used, for the card")
    structures: int | None = Field(
        None, ge=1, description="approximate number of structures, for the planner; null = counted in the files"
    )
    atoms: float | None = Field(
        None, gt=0, description="approximate atoms per structure, for the planner; null = counted in the files, or 30"
    )
    energies: Literal["any", "atoms", "crystals"] = Field(
        "any",
        description="kind of the energies, to detect a wrong unit: atoms = total energies of all electrons, "
        "crystals = as VASP has them, of valence electrons; any = no check",
    )


class LabelUnits(OwnDataOptions):
    """Units and signs of the labels in the user's own files."""

    energy_unit: EnergyUnit = Field("eV", description="unit of the energy and the virial")
    length_unit: LengthUnit = Field("Angstrom", description="unit of positions and cells")
    force_unit: ForceUnit | None = Field(
        None, description="unit of the forces, such as Hartree/Bohr; null = the energy's unit per the length's"
    )
    forces_are: Literal["forces", "gradients"] = Field(
        "forces", description="forces are -dE/dx; gradients, dE/dx, have the other sign"
    )
    stress_unit: StressUnit = Field("eV/Angstrom^3", description="unit of the stress")
    stress_positive_in: Literal["tension", "compression"] = Field(
        "tension", description="sign of the stress: tension, as ASE has it, or compression, as VASP prints it"
    )
    stress_order: Literal["ase", "vasp"] = Field(
        "ase", description="order of a stress of six numbers: ase = xx yy zz yz xz xy, vasp = xx yy zz xy yz zx"
    )


class LabelKeys(LabelUnits):
    """Names of the labels in the user's own files, and what they say of groups and splits."""

    raw: str
    energy: str = Field("energy", description="key of the energy, such as REF_energy; 'none' leaves energies out")
    forces: str = Field("forces", description="key of the forces; NaN where it is lacking; 'none' leaves forces out")
    stress: str = Field("stress", description="key of the stress, 9 or 6 numbers; 'none' leaves it out")
    virial: str = Field("virial", description="key of the virial, -stress times volume; where there is no stress")
    group: str | None = Field(
        None,
        description="key whose value no two splits share, such as config_type; 'file' = each file is a group, "
        "'frame' = each frame; null = as the format suggests, which is by frame where it suggests nothing",
    )
    split_key: str | None = Field(
        None, description="key whose value says the published split: train, val, valid, validation or test"
    )
    split_by_file: bool = Field(
        False,
        description="where a file or folder below raw has the word test in its name, take the published split from "
        "such words: train, val, test; files without such a word are for training",
    )
    isolated_atoms: str | None = Field(
        None,
        description="file with one frame for each isolated atom, whose energies are the reference energies; "
        "beside the data, or an absolute path; it has the same keys",
    )


def own_data_card(
    name: str, options: OwnDataOptions, neighbours: float, seconds: float, count: Callable[[], SourceSize]
) -> DatasetCard:
    """Return the card of the user's own data; `count` tells the size of the files where the user does not."""
    size = SourceSize()
    if options.structures is None or options.atoms is None:
        with suppress(OSError, UserError, ValueError):  # files that are missing or broken are told when they are read
            size = count()
    return DatasetCard(
        name=name,
        title=options.title,
        theory=options.theory,
        citation=options.citation,
        licence=options.licence,
        structures=options.structures or max(1, round(size.structures)),
        atoms_per_structure=options.atoms or size.atoms,
        neighbours_per_atom=neighbours,
        seconds_per_structure=seconds,
    )


def find_own_files(raw: str, isolated_atoms: str | None, patterns: tuple[str, ...], advice: str) -> list[Path]:
    """Return the files to read, with that of the isolated atoms, which may lie among them."""
    try:
        listed = find_files(raw, patterns, advice)
    except FileNotFoundError as error:
        folder = Path(raw).expanduser()
        held = f"; there is {describe_folder(folder)}" if folder.is_dir() else ""
        raise FileNotFoundError(f"{error}{held}") from None
    beside = path_beside(raw, isolated_atoms)
    if beside is None or beside in listed:
        return listed
    if not beside.is_file():
        raise FileNotFoundError(f"{beside}: no such file; give the path of the isolated atoms' energies beside {raw}")
    return [*listed, beside]


def path_beside(raw: str, name: str | None) -> Path | None:
    """Return the path of a file named in the options: below the folder `raw`, or beside the file `raw`."""
    if name is None:
        return None
    path = Path(raw).expanduser()
    return (path if path.is_dir() else path.parent) / Path(name).expanduser()


def unread_files(raw: str, listed: list[Path]) -> list[Path]:
    """Return the files in the folder `raw` that are not in the list, except hidden ones."""
    folder = Path(raw).expanduser()
    if not folder.is_dir():
        return []
    read = set(listed)
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path not in read and not any(part[0] == "." for part in path.relative_to(folder).parts)
    ]


def list_pieces(options: LabelKeys, files: list[Path], list_of_file: Callable[[Location], list[Piece]]) -> list[Piece]:
    """Return the pieces of all files, complete; what breaks is told as a fault of the user's own file."""
    listed: list[Piece] = []
    for path in files:
        with Location(path, OWN_FILE) as location:
            listed += list_of_file(location)
    return complete_pieces(options, files, listed)


def complete_pieces(options: LabelKeys, listed: list[Path], pieces: list[Piece]) -> list[Piece]:
    """Return the pieces with the splits that names of files say, and one in which unread files are counted as skipped."""
    splits = published_splits(options, listed)
    named = [piece._replace(split=splits.get(piece.path, piece.split)) for piece in pieces]
    unread = unread_files(options.raw, listed)
    return [*named, Piece(NOT_READ, 1e-9, Path(options.raw).expanduser(), NOT_READ)] if unread else named


def skip_unread_files(raw: str, listed: list[Path], skip: SkipStructure) -> None:
    for path in unread_files(raw, listed):
        skip(f"file that this dataset does not read: *{path.suffix}" if path.suffix else f"file: {path.name}")


def published_splits(options: LabelKeys, listed: list[Path]) -> dict[Path, SplitName]:
    """Return the split of each file or folder, if the options ask for it and any of their names says that it is for tests."""
    if not options.split_by_file:
        return {}
    splits = {path: split_by_name(name_below(options.raw, path)) for path in listed}
    return splits if "test" in splits.values() else {}


def split_by_name(name: str) -> SplitName:
    """Return the split that the words in a file's name below `raw` say; the last word counts, and training without one."""
    said = [SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_WORDS]
    return said[-1] if said else "train"
