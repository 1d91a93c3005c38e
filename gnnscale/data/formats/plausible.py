"""A check that structures are plausible: a wrong unit or reference shows in the energy per atom."""

from __future__ import annotations

from typing import Literal

import numpy as np

from gnnscale.atoms import units
from gnnscale.atoms.atomic_energies import CRYSTAL_EV, FREE_ATOM_HARTREE
from gnnscale.atoms.structure import Structure
from gnnscale.contract.errors import BadFile
from gnnscale.data.formats.raw_files import Location

STRUCTURES_PER_WINDOW = 64  # whose mean energy is checked; a single crystal may be oddly strained
# The energy divided by the sum of the table must lie between these. Measured: single crystals of MPtrj and Alexandria 0.27
# to 3.0, windows of them 0.98 to 1.33; relaxations of OC20 0.79 to 1.65.
ALLOWED_RATIOS = {"atoms": (0.7, 1.4), "crystals": (0.2, 4.0), "adsorption": (-0.15, 0.15)}
MAX_FORCE, MAX_ENERGY_PER_ATOM, MAX_LENGTH = 1e5, 1e3, 1e5  # eV/Angstrom, eV, Angstrom; no computed structure has more

EnergyKind = Literal["any", "atoms", "crystals", "adsorption"]


class PlausibilityCheck:
    """A check of the structures of one file, called with each of them in order.

    Energies of kind "atoms" are total energies of all electrons, checked one by one; those of "crystals" (valence electrons,
    as in VASP) and of "adsorption" are checked as means over a window; "any" are not checked.
    """

    def __init__(self, location: Location, kind: EnergyKind):
        self.location, self.kind = location, kind
        self.table = np.full(120, np.nan)
        for number, energy in (FREE_ATOM_HARTREE if kind == "atoms" else CRYSTAL_EV).items():
            self.table[number] = energy * (units.HARTREE if kind == "atoms" else 1.0)
        self.start_window()

    def start_window(self) -> None:
        self.energy = self.expected = 0.0  # eV, sums over the window
        self.structures = self.atoms = 0

    def __call__(self, structure: Structure) -> Structure:
        """Return the structure if it is plausible; else raise an error with its location."""
        self.check_geometry(structure)
        expected = self.table[structure.numbers].sum()
        if self.kind != "any" and np.isfinite(structure.energy) and np.isfinite(expected):
            self.check_energy(structure, expected)
        return structure

    def check_geometry(self, structure: Structure) -> None:
        numbers = structure.numbers
        if numbers.min() < 1 or numbers.max() > 118:
            raise self.fault(structure, f"atomic numbers {numbers.min()} to {numbers.max()}")
        if not np.abs(structure.positions).max() < MAX_LENGTH or not np.abs(structure.cell).max() < MAX_LENGTH:
            raise self.fault(structure, f"positions or cell are not finite or beyond {MAX_LENGTH:g} Angstrom")
        if np.abs(structure.forces).max() > MAX_FORCE:
            raise self.fault(structure, f"a force of {np.abs(structure.forces).max():.3g} eV/Angstrom")
        if structure.pbc.all() and not abs(np.linalg.det(structure.cell)) > 1e-3:
            raise self.fault(structure, "it is periodic, but its cell has no volume")

    def check_energy(self, structure: Structure, expected: float) -> None:
        atoms, energy = len(structure.numbers), structure.energy
        if self.kind == "atoms":
            self.compare(structure, energy, expected, atoms)
            return
        if abs(energy) > MAX_ENERGY_PER_ATOM * atoms:
            raise self.fault(structure, f"an energy of {energy / atoms:.4g} eV per atom")
        self.energy, self.expected = self.energy + energy, self.expected + expected
        self.atoms, self.structures = self.atoms + atoms, self.structures + 1
        if self.structures == STRUCTURES_PER_WINDOW:
            self.finish(structure)

    def finish(self, structure: Structure | None = None) -> None:
        """Check the mean over the window, when it is full or the file ends."""
        if self.expected < -1.0:  # noble gases are bound too weakly to tell
            which = f"mean of the last {self.structures} structures, "
            self.compare(structure, self.energy, self.expected, self.atoms, which)
        self.start_window()

    def compare(self, structure: Structure | None, energy: float, expected: float, atoms: int, which: str = "") -> None:
        """Raise an error if the ratio of the energy to the expected one is not allowed, with the unit that would fit."""
        low, high = ALLOWED_RATIOS[self.kind]
        ratio = energy / expected
        if low < ratio < high:
            return
        wanted, guess = "an energy of adsorption", ""
        if self.kind != "adsorption":
            wanted = f"a total energy of these elements, which is near {expected / atoms:.3g}"
            fits = [unit for unit, size in units.ENERGY_UNITS.items() if unit != "eV" and low < ratio * size < high]
            guess = f"; in {fits[0]} it would fit" if fits else ""
        raise self.fault(
            structure,
            f"{which}{energy / atoms:.5g} eV per atom cannot be {wanted}{guess}: another unit, or another energy",
        )

    def fault(self, structure: Structure | None, what: str) -> BadFile:
        if structure is not None:
            self.location.where = structure.label or structure.group
        return self.location.fault(what)
