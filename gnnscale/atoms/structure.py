"""One labelled configuration, in NumPy: what every converter yields. eV and Angstrom, always."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Structure(NamedTuple):
    """A label that the source lacks is NaN, never 0."""

    numbers: np.ndarray  # (A,) atomic numbers
    positions: np.ndarray  # (A, 3) Angstrom
    cell: np.ndarray  # (3, 3) Angstrom, rows are the lattice vectors; zero rows where there are none
    pbc: np.ndarray  # (3,) bool, periodic along each lattice vector
    energy: float  # eV, total
    forces: np.ndarray  # (A, 3) eV/Angstrom, -dE/dx
    stress: np.ndarray  # (3, 3) eV/Angstrom^3, positive in tension
    group: str  # structures of one group (molecule, trajectory, material) never straddle splits
    label: str = ""  # where it came from, for people: a formula, an id, a frame
    split: str = ""  # "train", "validation" or "test" where the source publishes it; else by hash of the group
