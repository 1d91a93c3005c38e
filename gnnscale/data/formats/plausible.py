"""A check that structures are plausible: a wrong unit or reference shows in the energy per atom."""

from __future__ import annotations

from typing import Literal

import numpy as np
from ase.data import atomic_numbers

from gnnscale.atoms import units
from gnnscale.atoms.structure import Structure
from gnnscale.contract.errors import BadFile
from gnnscale.data.formats.raw_files import Location


def parse_table(text: str) -> dict[int, float]:
    """Parse pairs of element and number; the keys returned are atomic numbers."""
    words = text.split()
    return {atomic_numbers[symbol]: float(number) for symbol, number in zip(words[::2], words[1::2], strict=True)}


# Hartree: total energy of the free atom, Hartree-Fock limit (Koga et al., Int. J. Quantum Chem. 71, 491 (1999)), to
# 1 %, which suffices here; iodine with the 28-electron core potential of def2. Measured:
# samples of ANI-1x and SPICE are at 1.005 to 1.015 of these sums.
FREE_ATOM_HARTREE = parse_table("""
    H -0.5  He -2.86
    Li -7.43  Be -14.6  B -24.5  C -37.7  N -54.4  O -74.8  F -99.4  Ne -128.5
    Na -161.9  Mg -199.6  Al -241.9  Si -288.9  P -340.7  S -397.5  Cl -459.5  Ar -526.8
    K -599.2  Ca -676.8  Sc -759.7  Ti -848.4  V -942.9  Cr -1043.4  Mn -1149.9  Fe -1262.4  Co -1381.4  Ni -1506.9
    Cu -1639.0  Zn -1777.8  Ga -1923.3  Ge -2075.4  As -2234.2  Se -2399.9  Br -2572.4  Kr -2752.1
    I -297.7
""")

# eV per atom of the elemental crystal in the Materials Project (VASP, PBE, valence electrons only), to 10 %
CRYSTAL_EV = parse_table("""
    H -3.4  He 0.0
    Li -1.9  Be -3.7  B -6.7  C -9.2  N -8.3  O -4.9  F -1.9  Ne 0.0
    Na -1.3  Mg -1.6  Al -3.7  Si -5.4  P -5.4  S -4.1  Cl -1.8  Ar -0.1
    K -1.1  Ca -2.0  Sc -6.3  Ti -7.8  V -9.1  Cr -9.6  Mn -9.1  Fe -8.5  Co -7.1  Ni -5.8
    Cu -4.1  Zn -1.3  Ga -3.0  Ge -4.6  As -4.7  Se -3.5  Br -1.6  Kr -0.1
    Rb -1.0  Sr -1.7  Y -6.5  Zr -8.5  Nb -10.1  Mo -10.8  Tc -10.4  Ru -9.3  Rh -7.4  Pd -5.2
    Ag -2.8  Cd -0.9  In -2.8  Sn -4.0  Sb -4.1  Te -3.1  I -1.5  Xe 0.0
    Cs -0.9  Ba -1.9  La -4.9  Ce -5.9  Pr -4.8  Nd -4.8  Pm -4.7  Sm -4.7  Eu -10.2  Gd -14.1
    Tb -4.6  Dy -4.6  Ho -4.6  Er -4.6  Tm -4.5  Yb -1.5  Lu -4.5  Hf -9.9  Ta -11.9  W -13.0
    Re -12.4  Os -11.2  Ir -8.9  Pt -6.1  Au -3.3  Hg -0.3  Tl -2.4  Pb -3.7  Bi -3.9  Po -4.0
    At -4.0  Rn 0.0
    Fr -1.0  Ra -2.0  Ac -4.1  Th -7.4  Pa -9.5  U -11.3  Np -12.9  Pu -14.1
""")

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
