"""Conversion of one frame of the user's own file into a structure: its keys, units, signs, group and published split."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gnnscale.atoms import units
from gnnscale.atoms.structure import SplitName, Structure, stress_from_voigt
from gnnscale.data.formats.label_numbers import count_numbers, to_numbers
from gnnscale.data.formats.own_data import (
    NO_LABEL,
    SPLIT_WORDS,
    LabelKeys,
    LabelUnits,
    path_beside,
)
from gnnscale.data.formats.pieces import Piece
from gnnscale.data.formats.plausible import PlausibilityCheck
from gnnscale.data.formats.raw_files import Location, name_below

ISOLATED = "isolatedatom"  # a value of config_type, in any case, with a space or _ or - or neither
REACH = 6.0  # Angstrom: an atom without an image nearer than this is taken for isolated
FROM_VASP = [0, 1, 2, 4, 5, 3]  # xx yy zz xy yz zx in the order xx yy zz yz xz xy


class OwnFrame(NamedTuple):
    """A frame as the user's file has it, in its units."""

    numbers: np.ndarray  # (A,)
    positions: np.ndarray  # (A, 3)
    cell: np.ndarray  # (3, 3), rows
    pbc: np.ndarray  # (3,) bool
    values: dict[str, Any]  # of the whole frame, by the file's names: text, numbers or arrays
    columns: dict[str, np.ndarray]  # one row for each atom, by the file's names


class Origin(NamedTuple):
    """The place of a frame, and what it suggests."""

    label: str
    group: str  # where the options name no other
    file: str  # its name below `raw`
    split: SplitName | None  # where the options name no other


def to_structures(
    options: LabelKeys, location: Location, piece: Piece, frames: Iterable[tuple[str, str, OwnFrame]]
) -> Iterator[Structure]:
    """Convert and check (label, suggested group, frame) of a piece."""
    check, file = PlausibilityCheck(location, options.energies), name_below(options.raw, location.path)
    for label, group, frame in frames:
        yield check(to_structure(options, location, frame, Origin(label, group, file, piece.split)))
    check.finish()


def to_structure(options: LabelKeys, location: Location, frame: OwnFrame, origin: Origin) -> Structure:
    length = units.LENGTH_UNITS[options.length_unit]
    cell, positions = np.asarray(frame.cell) * length, np.asarray(frame.positions) * length
    return Structure(
        numbers=np.asarray(frame.numbers, np.int64),
        positions=positions,
        cell=cell,
        pbc=frame.pbc,
        energy=read_energy(options, location, frame),
        forces=read_forces(options, location, frame),
        stress=read_stress(options, location, frame, cell),
        group=read_group(options, location, frame, origin),
        label=origin.label,
        split=read_split(options, location, frame, origin),
        is_reference=is_reference(options, location, frame, cell),
    )


def apply_units(options: LabelUnits, structure: Structure) -> Structure:
    """Convert a structure that has the units of its file."""
    length = units.LENGTH_UNITS[options.length_unit]
    cell = structure.cell * length
    return structure._replace(
        positions=structure.positions * length,
        cell=cell,
        energy=structure.energy * units.ENERGY_UNITS[options.energy_unit],
        forces=structure.forces * force_factor(options),
        stress=structure.stress * stress_factor(options),
        is_reference=len(structure.numbers) == 1 and nearest_image(cell, structure.pbc) > REACH,
    )


# ------------------------------------------------------------------------------------------------------------- labels
def read_energy(options: LabelKeys, location: Location, frame: OwnFrame) -> float:
    if options.energy == NO_LABEL:
        return float("nan")
    if options.energy not in frame.values:
        likely = find_likely(frame.values, "energy", (1,))
        held = ", ".join(frame.values)[:300] or "nothing"
        raise location.fault(f"no energy under the key {options.energy!r}; there is {held}", *advise("energy", likely))
    (energy,) = to_numbers(location, options.energy, frame.values[options.energy], (1,))
    return float(energy) * units.ENERGY_UNITS[options.energy_unit]


def read_forces(options: LabelKeys, location: Location, frame: OwnFrame) -> np.ndarray:
    shape = (len(frame.numbers), 3)
    if options.forces == NO_LABEL:
        return np.full(shape, np.nan)
    forces = frame.columns.get(options.forces)
    if forces is None:
        likely = [key for key, found in frame.columns.items() if is_like(key, "forc", "grad") and found.shape == shape]
        if likely:
            raise location.fault(f"no column {options.forces!r}, but {', '.join(likely)}", *advise("forces", likely))
        return np.full(shape, np.nan)
    if forces.shape != shape or forces.dtype.kind not in "fiu":
        raise location.fault(f"column {options.forces} of shape {forces.shape}, three numbers per atom were expected")
    return forces * force_factor(options)


def force_factor(options: LabelUnits) -> float:
    """Return what the forces of a file are multiplied by: their unit in eV/Angstrom, negative for gradients."""
    unit = options.force_unit or f"{options.energy_unit}/{options.length_unit}"
    return units.FORCE_UNITS[unit] * (-1 if options.forces_are == "gradients" else 1)


def read_stress(options: LabelKeys, location: Location, frame: OwnFrame, cell: np.ndarray) -> np.ndarray:
    """Return the stress (3, 3); a virial, which is positive in compression, counts where there is no stress."""
    for key in (options.stress, options.virial):
        if frame.values.get(key) is not None and options.stress != NO_LABEL:
            matrix = to_matrix(options, to_numbers(location, key, frame.values[key], (9, 6)))
            if key == options.stress:
                return matrix * stress_factor(options)
            return -matrix * units.ENERGY_UNITS[options.energy_unit] / abs(np.linalg.det(cell))
    likely = find_likely(frame.values, "stress", (9, 6)) + find_likely(frame.values, "virial", (9, 6))
    if likely and options.stress != NO_LABEL:
        what = "stress" if "stress" in likely[0].lower() else "virial"
        raise location.fault(f"no {options.stress} or {options.virial}, but {likely[0]}", *advise(what, likely))
    return np.full((3, 3), np.nan)


def stress_factor(options: LabelUnits) -> float:
    return units.STRESS_UNITS[options.stress_unit] * (1 if options.stress_positive_in == "tension" else -1)


def to_matrix(options: LabelUnits, stress: np.ndarray) -> np.ndarray:
    if len(stress) == 9:
        return stress.reshape(3, 3)
    return stress_from_voigt(stress[FROM_VASP] if options.stress_order == "vasp" else stress)


# ----------------------------------------------------------------------------------------- names that are not the asked
def find_likely(values: dict[str, Any], word: str, sizes: tuple[int, ...]) -> list[str]:
    """Return the keys that have this word in them and a value of one of these sizes."""
    return [key for key, value in values.items() if is_like(key, word) and count_numbers(value) in sizes]


def is_like(key: str, *words: str) -> bool:
    return any(word in key.lower() for word in words)


def advise(option: str, likely: list[str]) -> tuple[str, ...]:
    """Say what to type for each key that may be meant."""
    typed = [f"set the option {option}: {key} (by hand: --{option} {key})" for key in likely[:4]]
    if option != "energy":
        typed.append(f"or {option.replace('virial', 'stress')}: {NO_LABEL}, to leave it out")
    return tuple(typed)


# ---------------------------------------------------------------------------------------------------- groups and splits
def read_group(options: LabelKeys, location: Location, frame: OwnFrame, origin: Origin) -> str:
    if options.group in (None, "file", "frame"):
        return {None: origin.group, "file": origin.file, "frame": origin.label}[options.group]
    return read_text(location, frame, options.group, "group")


def read_split(options: LabelKeys, location: Location, frame: OwnFrame, origin: Origin) -> SplitName | None:
    if options.split_key is None:
        return origin.split
    value = read_text(location, frame, options.split_key, "split_key")
    if value.lower() not in SPLIT_WORDS:
        raise location.fault(
            f"{options.split_key}={value[:40]!r} is no split",
            f"name a key for split_key whose values are of: {', '.join(SPLIT_WORDS)}",
        )
    return SPLIT_WORDS[value.lower()]


def read_text(location: Location, frame: OwnFrame, key: str, option: str) -> str:
    """Return a value as text; a list of one is this one."""
    value = frame.values.get(key)
    if value is None:
        held = ", ".join(frame.values)[:300] or "nothing"
        raise location.fault(f"no {key}= in the frame; there is {held}", f"set the option {option} to one of these")
    return str(value[0]) if isinstance(value, list | tuple) and len(value) == 1 else str(value)


# ------------------------------------------------------------------------------------------------------- isolated atoms
def is_reference(options: LabelKeys, location: Location, frame: OwnFrame, cell: np.ndarray) -> bool:
    """Tell whether the frame is an isolated atom: by its file, by what it is called, or as nothing is near it."""
    atoms = len(frame.numbers)
    said = location.path == path_beside(options.raw, options.isolated_atoms)
    called = [key for key, value in frame.values.items() if is_called_isolated(value)]
    if atoms > 1 and (said or called):
        why = "of the file isolated_atoms" if said else f"with {called[0]}={frame.values[called[0]]}"
        raise location.fault(f"a frame {why} has {atoms} atoms, one was expected")
    return atoms == 1 and (said or bool(called) or nearest_image(cell, frame.pbc) > REACH)


def is_called_isolated(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(is_called_isolated, value))
    return isinstance(value, str) and value.lower().translate(str.maketrans("", "", " _-")).rstrip("s") == ISOLATED


def nearest_image(cell: np.ndarray, pbc: np.ndarray) -> float:
    """Return the distance to the nearest periodic image, Angstrom; infinite without any."""
    steps = [range(-2, 3) if periodic else (0,) for periodic in pbc]
    lengths = [np.linalg.norm(np.array(n) @ cell) for n in itertools.product(*steps) if any(n)]
    return float(min(lengths, default=np.inf))
