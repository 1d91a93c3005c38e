"""Your own structures in extended XYZ: one file or a folder of them, plain or in xz, gzip or bzip2."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.data.formats.own_data import OwnDataOptions, own_data_card
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.data.formats.raw_files import Location, find_files

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    import numpy as np

    from gnnscale.atoms.structure import Structure
    from gnnscale.contract.dataset_card import DatasetCard
    from gnnscale.data.formats.extxyz import Frame

PATTERNS = tuple(f"*.{kind}{packed}" for kind in ("xyz", "extxyz") for packed in ("", ".xz", ".gz", ".bz2"))


class Options(OwnDataOptions):
    """Options of this dataset."""

    raw: str = Field(description="an extended XYZ file (.xyz, .extxyz, also .xz, .gz, .bz2), or a folder of them")
    limit: int | None = Field(None, ge=1, description="use only the first frames of each file, at most this many")
    energy: str = Field("energy", description="key of the energy in the comment line, such as REF_energy")
    forces: str = Field("forces", description="column of the forces, -dE/dx; NaN in a frame that has no such column")
    stress: str = Field("stress", description="key of the stress, eV/Angstrom^3, positive in tension, 9 or 6 numbers")
    virial: str = Field("virial", description="key of the virial, eV, -stress times volume; where there is no stress")
    energy_unit: Literal["eV", "Hartree", "kcal/mol", "kJ/mol", "meV"] = Field(
        "eV", description="unit of the energy and the virial; forces are in this unit per Angstrom"
    )
    group: str | None = Field(
        None,
        description="key whose value no two splits share, such as config_type; null = each frame is a group of its own",
    )


def input_files(options: Options) -> list[Path]:
    return find_files(options.raw, PATTERNS, "give the path of an extended XYZ file or of a folder of them")


def card(options: Options) -> DatasetCard:
    return own_data_card("extxyz", options, neighbours=30.0, seconds=0.0006)


def pieces(options: Options) -> list[Piece]:
    """Return each file, or ranges of its bytes if it is large, not compressed and wanted as a whole."""
    from gnnscale.data.formats import extxyz

    return [
        piece
        for path in input_files(options)
        for piece in extxyz.pieces_by_bytes(options.raw, path, whole=options.limit is not None)
    ]


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.data.formats import extxyz
    from gnnscale.data.formats.plausible import PlausibilityCheck

    with Location(piece.path) as location:
        check = PlausibilityCheck(location, options.energies)
        for number, frame in enumerate(islice(extxyz.read_frames(location, piece.span), options.limit)):
            if len(frame.numbers) == 1 and not frame.pbc.any():
                skip("isolated atom: a reference, not a structure")
            else:
                yield check(to_structure(options, location, frame, f"{piece.name} frame {number}"))
        check.finish()


def to_structure(options: Options, location: Location, frame: Frame, label: str) -> Structure:
    import numpy as np

    from gnnscale.atoms import units
    from gnnscale.atoms.structure import Structure
    from gnnscale.data.formats import extxyz

    unit = units.ENERGY_UNITS[options.energy_unit]
    (energy,) = extxyz.parse_numbers(location, options.energy, comment_value(location, frame, options.energy), (1,))
    forces = frame.columns.get(options.forces)
    others = [name for name in frame.columns if name != options.forces and "force" in name.lower()]
    if forces is None and others:
        raise location.fault(f"no column {options.forces!r}, but {', '.join(others)}; set the option `forces`")
    if forces is not None and forces.shape != frame.columns["pos"].shape:
        raise location.fault(f"column {options.forces} has {forces.shape} numbers, three per atom were expected")
    group = label if options.group is None else comment_value(location, frame, options.group)
    return Structure(
        numbers=frame.numbers,
        positions=frame.columns["pos"],
        cell=frame.cell,
        pbc=frame.pbc,
        energy=float(energy) * unit,
        forces=np.full((len(frame.numbers), 3), np.nan) if forces is None else forces * unit,
        stress=read_stress(options, location, frame, unit),
        group=group,
        label=label,
    )


def comment_value(location: Location, frame: Frame, key: str) -> str:
    if key not in frame.info:
        raise location.fault(f"no {key}= in the comment line; there is {', '.join(frame.info)[:300] or 'nothing'}")
    return frame.info[key]


def read_stress(options: Options, location: Location, frame: Frame, unit: float) -> np.ndarray:
    """Return the stress (3, 3). ASE writes nine numbers in eV/Angstrom^3, positive in tension, whatever the energy's unit."""
    import numpy as np

    from gnnscale.atoms.structure import stress_from_voigt
    from gnnscale.data.formats import extxyz

    for key in (options.stress, options.virial):
        if key in frame.info:
            numbers = extxyz.parse_numbers(location, key, frame.info[key], (9, 6))
            matrix = numbers.reshape(3, 3) if len(numbers) == 9 else stress_from_voigt(numbers)
            if key == options.stress:
                return matrix
            return -matrix * unit / abs(np.linalg.det(frame.cell))  # a virial is positive in compression
    return np.full((3, 3), np.nan)


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
