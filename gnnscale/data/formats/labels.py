"""TODO: say what a reader finds here."""

from __future__ import annotations

import numpy as np

from gnnscale.atoms.structure import Structure

ENERGIES = (
    "which kind they are, to find a wrong unit: atoms = total ones of all electrons, crystals = as VASP has "
    "them, per valence electrons; any = no check"
)


def molecule(
    numbers: np.ndarray, positions: np.ndarray, energy: float, forces: np.ndarray | None, group: str, label: str
) -> Structure:
    """A structure without a cell, hence without stress; forces are NaN where there are none."""
    import numpy as np

    from gnnscale.atoms.structure import Structure

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


def voigt(six: np.ndarray) -> np.ndarray:
    """(3, 3) of ASE's order: xx yy zz yz xz xy."""
    xx, yy, zz, yz, xz, xy = six
    import numpy as np

    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], np.float64)
