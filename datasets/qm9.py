"""QM9: 134 thousand small organic molecules in equilibrium, energies without forces; H, C, N, O, F.

Ramakrishnan et al., Sci. Data 1, 140022 (2014). One text file a molecule, in a tar, in Hartree and Angstrom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.formats.labels import molecule
from gnnscale.data.formats.pieces import ROWS, Place, Unit, below, found
from gnnscale.schema import Spec

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure

MOLECULES, UNCHARACTERIZED = 133_885, 3_054
DOWNLOAD = "download dsgdb9nsd.xyz.tar.bz2 and uncharacterized.txt of figshare collection 978904"
# of line 2, after `gdb N`: A B C mu alpha homo lumo gap r2 zpve U0 U H G Cv
PROPERTY = {"U0": 12, "U": 13, "H": 14, "G": 15}


class Options(Spec):
    """What can be asked of this dataset."""

    raw: str = Field(description="dsgdb9nsd.xyz.tar.bz2 (figshare collection 978904), or a folder with the *.xyz of it")
    limit: int | None = Field(None, ge=1, description="only the first so many molecules")
    energy: Literal["U0", "U", "H", "G"] = Field(
        "U0", description="at 0 K with zero-point energy; inner energy, enthalpy, free energy at 298 K"
    )
    uncharacterized: Literal["drop", "keep"] = Field(
        "drop", description="molecules that relaxed into others: drop needs uncharacterized.txt beside the data"
    )


def inputs(options: Options) -> list[Path]:
    listed = found(options.raw, ("dsgdb9nsd*.tar.bz2", "dsgdb9nsd_*.xyz"), DOWNLOAD)
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


def units(options: Options) -> list[Unit]:
    """The archive, which can only be read from its beginning; or a thousand files each."""
    listed = [path for path in inputs(options) if path.name != "uncharacterized.txt"]
    if listed[0].suffix == ".bz2":
        return [Unit(below(options.raw, listed[0]), min(MOLECULES, options.limit or MOLECULES), listed[0])]
    listed = listed[: options.limit]
    units = []
    for first in range(0, len(listed), ROWS):
        some = listed[first : first + ROWS]
        name = f"{below(options.raw, some[0])} to {some[-1].name}"
        units.append(Unit(name, len(some), some[0].parent, span=(first, first + len(some))))
    return units


def structures(options: Options, unit: Unit, skip: Callable[[str], None]) -> Iterator[Structure]:
    from gnnscale.data.formats import plausible

    dropped: set[int] = set()
    listed = inputs(options)
    if options.uncharacterized == "drop":
        dropped = uncharacterized(listed.pop())
    if unit.span is not None:
        listed = listed[slice(*unit.span)]
    for place, lines in islice(texts(listed), None if unit.span else options.limit):
        with place:
            number, made = parsed(place, lines, PROPERTY[options.energy])
            if number in dropped:
                skip("uncharacterized: it relaxed into another molecule")
            else:
                yield plausible.Watch(place, "atoms")(made)


def uncharacterized(path: Path) -> set[int]:
    """The first column of a table between headings."""
    with Place(path) as place:
        numbers = {int(line.split()[0]) for line in path.read_text().splitlines() if line.strip()[:1].isdigit()}
        if not numbers:
            raise place.fault("no number of a molecule in it")
        return numbers


def texts(listed: list[Path]) -> Iterator[tuple[Place, list[str]]]:
    """The lines of each molecule's file, of a tar or of a folder."""
    import bz2
    import tarfile

    for path in listed:
        if path.suffix == ".xyz":
            place = Place(path)
            with place:
                lines = path.read_text().splitlines()
            yield place, lines
            continue
        archive = Place(path)
        with archive:
            try:
                # tarfile's own decompression takes a truncated archive for one that ends
                with bz2.open(path) as content, tarfile.open(fileobj=content, mode="r|") as tar:
                    for member in tar:
                        archive.where = member.name
                        file = tar.extractfile(member)
                        if file and member.name.endswith(".xyz"):
                            yield archive, file.read().decode().splitlines()
            except tarfile.TarError as error:
                raise archive.fault(f"no readable tar ({error}): truncated?") from error


def parsed(place: Place, lines: list[str], column: int) -> tuple[int, Structure]:
    """Number of atoms; properties; atoms with charges; frequencies; SMILES; InChI."""
    from ase.data import atomic_numbers

    from gnnscale.atoms import units

    where = place.where if place.where != "its beginning" else ""
    prefix = f"{where}, " if where else ""
    place.where = f"{prefix}line 1"
    count = int(lines[0])
    if len(lines) != count + 5:
        raise place.fault(f"{count} atoms make {count + 5} lines, there are {len(lines)}: truncated?")
    place.where = f"{prefix}line 2"
    words = lines[1].split()
    if len(words) != 17 or words[0] != "gdb":
        raise place.fault(f"'gdb', a number and 15 properties were expected, not {len(words)} words")
    number, energy = int(words[1]), float(words[column]) * units.HARTREE
    numbers, positions = [], []
    for k, line in enumerate(lines[2 : 2 + count]):
        place.where = f"{prefix}line {3 + k}"
        symbol, x, y, z, _ = line.split()
        numbers.append(atomic_numbers[symbol])
        positions.append([float(each.replace("*^", "e")) for each in (x, y, z)])  # 1.2*^-6, of Mathematica
    place.where = where or "its beginning"
    name = f"dsgdb9nsd_{number:06d}"
    return number, molecule(numbers, positions, energy, None, name, name)


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
