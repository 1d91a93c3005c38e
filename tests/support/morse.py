"""Structures of Morse bonds, whose energies, forces and stresses belong together exactly."""

from __future__ import annotations

import numpy as np
from ase.data import covalent_radii

from gnnscale.atoms import neighbors, units
from gnnscale.atoms.atomic_energies import FREE_ATOM_HARTREE
from gnnscale.atoms.structure import Structure

CUTOFF = 5.0
NONE = np.full((3, 3), np.nan)


def labelled(numbers, positions, cell, pbc, group, split=None, stressed=False):
    """Return a structure with Morse bonds at the sums of covalent radii between free atoms; labels are derivatives."""
    i, j, shifts = neighbors.find_edges(positions, cell, pbc, CUTOFF)
    vectors = positions[j] + shifts @ cell - positions[i]
    r = np.linalg.norm(vectors, axis=1)
    decay = np.exp(-2 * (r - covalent_radii[numbers[i]] - covalent_radii[numbers[j]]))
    slopes = (4 * (decay - decay**2) / r)[:, None] * vectors
    forces = np.zeros_like(positions)
    np.add.at(forces, i, slopes)
    energy = (decay**2 - 2 * decay).sum() / 2 + sum(units.HARTREE * FREE_ATOM_HARTREE[int(z)] for z in numbers)
    stress = np.einsum("ei,ej->ij", vectors, slopes) / 2 / abs(np.linalg.det(cell)) if stressed else NONE
    return Structure(numbers, positions, cell, pbc, float(energy), forces, stress, group, "", split)
