"""QM9: 134 thousand small organic molecules in equilibrium, energies without forces; H, C, N, O, F.

Ramakrishnan et al., Sci. Data 1, 140022 (2014). One text file a molecule, in a tar, in Hartree and Angstrom.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.formats.pieces import ROWS_PER_PIECE, Piece, SkipStructure
from gnnscale.data.formats.raw_files import BEGINNING, Location, find_files, name_below
from gnnscale.schema import Record

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure

MOLECULES, UNCHARACTERIZED = 133_885, 3_054
DOWNLOAD = "download dsgdb9nsd.xyz.tar.bz2 and uncharacterized.txt of figshare collection 978904"
# of line 2, after `gdb N`: A B C mu alpha homo lumo gap r2 zpve U0 U H G Cv
COLUMN_OF_ENERGY = {"U0": 12, "U": 13, "H": 14, "G": 15}


class Options(Record):
    """Options of this dataset."""

    raw: str = Field(description="dsgdb9nsd.xyz.tar.bz2 (figshare collection 978904), or a folder with the *.xyz of it")
    limit: int | None = Field(None, ge=1, description="use only the first molecules, at most this many")
    energy: Literal["U0", "U", "H", "G"] = Field(
        "U0", description="U0 at 0 K with zero-point energy; U, H, G: inner energy, enthalpy, free energy at 298 K"
    )
    uncharacterized: Literal["drop", "keep"] = Field(
        "drop", description="molecules that relaxed into others: drop needs uncharacterized.txt beside the data"
    )


def input_files(options: Options) -> list[Path]:
    listed = find_files(options.raw, ("dsgdb9nsd*.tar.bz2", "dsgdb9nsd_*.xyz"), DOWNLOAD)
    archives = [path for path in listed if path.suffix == ".bz2"]
    listed = archives[:1] or listed  # the folder may hold both
    if options.uncharacterized == "keep":
        return listed
    beside = listed[0].parent / "uncharacterized.txt"
    if not beside.is_file():
        raise FileNotFoundError(f"{beside}: missing; {DOWNLOAD}; or set uncharacterized: keep")
    return [*listed, beside]


def card(options: Options) -> DatasetCard:
    count = MOLECULES - (UNCHARACTERIZED if options.uncharacterized == "drop" else 0)
    return DatasetCard(
        name="qm9",
        title="QM9: small organic molecules in equilibrium",
        theory=f"B3LYP/6-31G(2df,p), Gaussian 09; {options.energy}, no forces",
        citation="Ramakrishnan et al., Sci. Data 1, 140022 (2014), 10.1038/sdata.2014.22",
        licence="CC0",
        structures=min(count, options.limit or count),
        atoms_per_structure=18.0,
        neighbours_per_atom=14.0,
        seconds_per_structure=0.0003,
    )


def pieces(options: Options) -> list[Piece]:
    """Return the archive, which can only be read from its beginning, or a thousand files per piece."""
    listed = [path for path in input_files(options) if path.name != "uncharacterized.txt"]
    if listed[0].suffix == ".bz2":
        return [Piece(name_below(options.raw, listed[0]), min(MOLECULES, options.limit or MOLECULES), listed[0])]
    listed = listed[: options.limit]
    made = []
    for first in range(0, len(listed), ROWS_PER_PIECE):
        some = listed[first : first + ROWS_PER_PIECE]
        name = f"{name_below(options.raw, some[0])} to {some[-1].name}"
        made.append(Piece(name, len(some), some[0].parent, span=(first, first + len(some))))
    return made


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.data.formats.plausible import PlausibilityCheck

    dropped: set[int] = set()
    listed = input_files(options)
    if options.uncharacterized == "drop":
        dropped = read_uncharacterized(listed.pop())
    if piece.span is not None:
        listed = listed[slice(*piece.span)]
    for location, lines in islice(read_texts(listed), None if piece.span else options.limit):
        with location:
            number, molecule = parse_molecule(location, lines, COLUMN_OF_ENERGY[options.energy])
            if number in dropped:
                skip("uncharacterized: it relaxed into another molecule")
            else:
                yield PlausibilityCheck(location, "atoms")(molecule)


def read_uncharacterized(path: Path) -> set[int]:
    """Read the numbers of molecules to leave out: the first column of a table between headings."""
    with Location(path) as location:
        numbers = {int(line.split()[0]) for line in path.read_text().splitlines() if line.strip()[:1].isdigit()}
        if not numbers:
            raise location.fault("it has no number of a molecule")
        return numbers


def read_texts(listed: list[Path]) -> Iterator[tuple[Location, list[str]]]:
    """Yield the lines of each molecule's file, from a tar or a folder."""
    import bz2
    import tarfile

    for path in listed:
        if path.suffix == ".xyz":
            location = Location(path)
            with location:
                lines = path.read_text().splitlines()
            yield location, lines
            continue
        archive = Location(path)
        with archive:
            try:
                # tarfile's own decompression takes a truncated archive for a complete one
                with bz2.open(path) as content, tarfile.open(fileobj=content, mode="r|") as tar:
                    for member in tar:
                        archive.where = member.name
                        file = tar.extractfile(member)
                        if file and member.name.endswith(".xyz"):
                            yield archive, file.read().decode().splitlines()
            except tarfile.TarError as error:
                raise archive.fault(f"no readable tar ({error}): truncated?") from error


def parse_molecule(location: Location, lines: list[str], column: int) -> tuple[int, Structure]:
    """Parse a file: number of atoms, properties, atoms with charges, frequencies, SMILES and InChI."""
    import numpy as np
    from ase.data import atomic_numbers

    from gnnscale.atoms import units
    from gnnscale.atoms.structure import isolated_molecule

    where = location.where if location.where != BEGINNING else ""
    prefix = f"{where}, " if where else ""
    location.where = f"{prefix}line 1"
    count = int(lines[0])
    if len(lines) != count + 5:
        raise location.fault(f"{count} atoms make {count + 5} lines, there are {len(lines)}: truncated?")
    location.where = f"{prefix}line 2"
    words = lines[1].split()
    if len(words) != 17 or words[0] != "gdb":
        raise location.fault(f"'gdb', a number and 15 properties were expected, not {len(words)} words")
    number, energy = int(words[1]), float(words[column]) * units.HARTREE
    numbers, positions = [], []
    for k, line in enumerate(lines[2 : 2 + count]):
        location.where = f"{prefix}line {3 + k}"
        symbol, x, y, z, _ = line.split()
        numbers.append(atomic_numbers[symbol])
        positions.append([float(each.replace("*^", "e")) for each in (x, y, z)])  # 1.2*^-6, of Mathematica
    location.where = where or BEGINNING
    name = f"dsgdb9nsd_{number:06d}"
    return number, isolated_molecule(np.array(numbers), np.array(positions), energy, None, name, name)


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
