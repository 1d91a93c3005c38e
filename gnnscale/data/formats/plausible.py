"""Whether energies can be what a file is said to hold: a unit or a reference that is wrong shows in energy per atom."""

from __future__ import annotations

import numpy as np

from gnnscale.atoms import units
from gnnscale.atoms.structure import Structure
from gnnscale.data.formats.pieces import Place

# Hartree: total energy of the free atom, Hartree-Fock limit (Koga et al., Int. J. Quantum Chem. 71, 491 (1999)), to
# 1 %, which is all that is needed; iodine with the 28-electron core potential of def2. Measured:
# samples of ANI-1x and SPICE are at 1.005 to 1.015 of these sums.
ATOM = {
    1: -0.5,
    2: -2.86,
    3: -7.43,
    4: -14.6,
    5: -24.5,
    6: -37.7,
    7: -54.4,
    8: -74.8,
    9: -99.4,
    10: -128.5,
    11: -161.9,
    12: -199.6,
    13: -241.9,
    14: -288.9,
    15: -340.7,
    16: -397.5,
    17: -459.5,
    18: -526.8,
    19: -599.2,
    20: -676.8,
    21: -759.7,
    22: -848.4,
    23: -942.9,
    24: -1043.4,
    25: -1149.9,
    26: -1262.4,
    27: -1381.4,
    28: -1506.9,
    29: -1639.0,
    30: -1777.8,
    31: -1923.3,
    32: -2075.4,
    33: -2234.2,
    34: -2399.9,
    35: -2572.4,
    36: -2752.1,
    53: -297.7,
}

# eV per atom of the elemental crystal, as the Materials Project has them (VASP, PBE, valence electrons only), to 10 %
CRYSTAL = dict(
    enumerate(
        [
            -3.4,
            0.0,
            -1.9,
            -3.7,
            -6.7,
            -9.2,
            -8.3,
            -4.9,
            -1.9,
            0.0,
            -1.3,
            -1.6,
            -3.7,
            -5.4,
            -5.4,
            -4.1,
            -1.8,
            -0.1,
            -1.1,
            -2.0,
            -6.3,
            -7.8,
            -9.1,
            -9.6,
            -9.1,
            -8.5,
            -7.1,
            -5.8,
            -4.1,
            -1.3,
            -3.0,
            -4.6,
            -4.7,
            -3.5,
            -1.6,
            -0.1,
            -1.0,
            -1.7,
            -6.5,
            -8.5,
            -10.1,
            -10.8,
            -10.4,
            -9.3,
            -7.4,
            -5.2,
            -2.8,
            -0.9,
            -2.8,
            -4.0,
            -4.1,
            -3.1,
            -1.5,
            0.0,
            -0.9,
            -1.9,
            -4.9,
            -5.9,
            -4.8,
            -4.8,
            -4.7,
            -4.7,
            -10.2,
            -14.1,
            -4.6,
            -4.6,
            -4.6,
            -4.6,
            -4.5,
            -1.5,
            -4.5,
            -9.9,
            -11.9,
            -13.0,
            -12.4,
            -11.2,
            -8.9,
            -6.1,
            -3.3,
            -0.3,
            -2.4,
            -3.7,
            -3.9,
            -4.0,
            -4.0,
            0.0,
            -1.0,
            -2.0,
            -4.1,
            -7.4,
            -9.5,
            -11.3,
            -12.9,
            -14.1,
        ],
        start=1,
    )
)

WINDOW = 64  # structures; one alone may be oddly strained
# Energy over the sum of the table must be between these. Measured: single crystals of MPtrj and Alexandria 0.27 to 3.0,
# windows of them 0.98 to 1.33; relaxations of OC20 0.79 to 1.65.
LIMITS = {"atoms": (0.7, 1.4), "crystals": (0.2, 4.0), "adsorption": (-0.15, 0.15)}
FORCE, ENERGY, LENGTH = 1e5, 1e3, 1e5  # eV/Angstrom, eV/atom, Angstrom: nothing that was computed has more


class Watch:
    """Called with each structure of a file, in order. `kind` is a key of LIMITS; None where any energy may be."""

    def __init__(self, place: Place, kind: str | None):
        self.place, self.kind = place, kind
        self.table = np.full(120, np.nan)
        for number, energy in (ATOM if kind == "atoms" else CRYSTAL).items():
            self.table[number] = energy * (units.HARTREE if kind == "atoms" else 1.0)
        self.energy = self.expected = 0.0  # sums over the window
        self.seen = self.atoms = 0

    def __call__(self, structure: Structure) -> Structure:
        """The same structure, if it can be one."""
        numbers, energy = structure.numbers, structure.energy
        if numbers.min() < 1 or numbers.max() > 118:
            raise self.fault(structure, f"atomic numbers {numbers.min()} to {numbers.max()}")
        if not np.abs(structure.positions).max() < LENGTH or not np.abs(structure.cell).max() < LENGTH:
            raise self.fault(structure, f"positions or cell are not finite or beyond {LENGTH:g} Angstrom")
        if np.abs(structure.forces).max() > FORCE:
            raise self.fault(structure, f"a force of {np.abs(structure.forces).max():.3g} eV/Angstrom")
        if structure.pbc.any() and not abs(np.linalg.det(structure.cell)) > 1e-3 and structure.pbc.all():
            raise self.fault(structure, "it is periodic, but its cell has no volume")
        expected = self.table[numbers].sum()
        if self.kind is None or not np.isfinite(energy) or not np.isfinite(expected):
            return structure
        if self.kind == "atoms":
            self.judge(structure, energy, expected, len(numbers))
        else:
            if abs(energy) > ENERGY * len(numbers):
                raise self.fault(structure, f"an energy of {energy / len(numbers):.4g} eV per atom")
            self.energy, self.expected = self.energy + energy, self.expected + expected
            self.atoms, self.seen = self.atoms + len(numbers), self.seen + 1
            if self.seen == WINDOW:
                self.done(structure)
        return structure

    def done(self, structure: Structure | None = None) -> None:
        """The window is full, or the file is at its end."""
        if self.expected < -1.0:  # noble gases are bound by too little to say
            self.judge(structure, self.energy, self.expected, self.atoms, f"mean of the last {self.seen} structures, ")
        self.energy = self.expected = 0.0
        self.seen = self.atoms = 0

    def judge(self, structure: Structure | None, energy: float, expected: float, atoms: int, who: str = "") -> None:
        low, high = LIMITS[self.kind]
        ratio = energy / expected
        if low < ratio < high:
            return
        fits = [unit for unit, size in units.ENERGY.items() if unit != "eV" and low < ratio * size < high]
        guess = f"; in {fits[0]} it would fit" if fits and self.kind != "adsorption" else ""
        what = (
            "an energy of adsorption"
            if self.kind == "adsorption"
            else (f"a total energy of these elements, which is near {expected / atoms:.3g}")
        )
        raise self.fault(
            structure,
            f"{who}{energy / atoms:.5g} eV per atom cannot be {what}{guess}: another unit, or another energy",
        )

    def fault(self, structure: Structure | None, what: str) -> Exception:
        if structure is not None:
            self.place.where = structure.label or structure.group
        return self.place.fault(what)
