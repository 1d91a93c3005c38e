"""One labelled configuration in NumPy, as every data set's script yields it; always in eV and Angstrom."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

SplitName = Literal["train", "validation", "test"]


class Structure(NamedTuple):
    """A labelled configuration. A label that the source lacks is NaN, never 0."""

    numbers: np.ndarray  # (A,) atomic numbers
    positions: np.ndarray  # (A, 3) Angstrom
    cell: np.ndarray  # (3, 3) Angstrom, rows are the lattice vectors; zero rows where there are none
    pbc: np.ndarray  # (3,) bool, periodic along each lattice vector
    energy: float  # eV, total
    forces: np.ndarray  # (A, 3) eV/Angstrom, -dE/dx
    stress: np.ndarray  # (3, 3) eV/Angstrom^3, positive in tension
    group: str  # structures of one group (molecule, trajectory, material) never straddle splits
    label: str = ""  # where it came from, for people: a formula, an id, a frame
    split: SplitName | None = None  # where the source publishes it; else it is drawn by a hash of the group
    is_reference: bool = False  # an isolated atom: its energy is its element's reference, and no shard holds it


def isolated_molecule(
    numbers: np.ndarray, positions: np.ndarray, energy: float, forces: np.ndarray | None, group: str, label: str
) -> Structure:
    """Return a structure without a cell, hence without stress; forces are NaN where there are none."""
    return Structure(
        numbers=np.asarray(numbers, np.int64),
        positions=np.asarray(positions, np.float64),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, bool),
        energy=float(energy),
        forces=np.full((len(numbers), 3), np.nan) if forces is None else np.asarray(forces, np.float64),
        stress=np.full((3, 3), np.nan),
        group=group,
        label=label,
    )


def stress_from_voigt(six: np.ndarray) -> np.ndarray:
    """Return the matrix for ASE's order of components: xx yy zz yz xz xy: (3, 3)."""
    xx, yy, zz, yz, xz, xy = six
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], np.float64)
