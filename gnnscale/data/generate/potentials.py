"""Labels of the generated corpus: GFN-xTB for molecules, EMT, rigid ions and Tersoff for slabs and crystals.

All are short-ranged and go to zero smoothly at their cutoffs, so that energies are additive and forces are -dE/dx.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import scipy.special
from ase import Atoms

from gnnscale.atoms.neighbors import find_edges

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator
    from ase.calculators.tersoff import TersoffParameters

COULOMB = 14.399645  # eV Angstrom, e^2 / (4 pi epsilon_0)


class Label(NamedTuple):
    """The labels of one structure."""

    energy: float  # eV
    forces: np.ndarray  # (A, 3) eV/Angstrom
    stress: np.ndarray  # (3, 3) eV/Angstrom^3, positive in tension; NaN for molecules


class Unlabelled(Exception):
    """A label could not be computed; the message is the reason, by which such structures are counted."""


# ------------------------------------------------------------------------------------------------------ molecules
def xtb(atoms: Atoms, method: Literal["GFN1-xTB", "GFN2-xTB"]) -> Label:
    """Label a neutral closed-shell molecule by GFN1-xTB (10.1021/acs.jctc.7b00118) or GFN2-xTB (10.1021/acs.jctc.8b01176)."""
    from ase.units import Bohr, Hartree
    from tblite.exceptions import TBLiteRuntimeError
    from tblite.interface import Calculator

    calculator = Calculator(method, atoms.numbers, atoms.positions / Bohr)
    calculator.set("verbosity", 0)
    calculator.set("max-iter", 150)
    try:
        result = calculator.singlepoint()
    except TBLiteRuntimeError as error:
        raise Unlabelled(f"{method} found no self-consistent density") from error
    forces = -result.get("gradient") * Hartree / Bohr
    return Label(float(result.get("energy")) * Hartree, forces, np.full((3, 3), np.nan))


# -------------------------------------------------------------------------------------------- metals and semiconductors
def emt(atoms: Atoms) -> Label:
    """Label by effective medium theory (10.1016/0039-6028(96)00816-3) as in ASE, with its parameters for H, C, N and O."""
    from ase.calculators.emt import EMT

    return _from_ase(atoms, EMT())  # its default cutoff is one for all elements: energies stay additive


def tersoff(atoms: Atoms) -> Label:
    """Label Si, C and SiC by the potential of Tersoff, Phys. Rev. B 39, 5566 (1989)."""
    from ase.calculators.tersoff import Tersoff

    return _from_ase(atoms, Tersoff(_tersoff_parameters()))


def _from_ase(atoms: Atoms, calculator: Calculator) -> Label:
    labelled = atoms.copy()
    labelled.set_constraint()  # a constraint would zero the forces on fixed atoms
    labelled.calc = calculator
    energy, forces = labelled.get_potential_energy(), labelled.get_forces()
    return Label(float(energy), forces.copy(), labelled.get_stress(voigt=False))


@cache
def _tersoff_parameters() -> dict[tuple[str, str, str], TersoffParameters]:
    """Mix table I of the paper by its eq. 1; keys are (i, j, k) as in LAMMPS: centre, neighbour, third atom."""
    from ase.calculators.tersoff import TersoffParameters

    table = {  # A, B eV; lambda, mu 1/Angstrom; beta, n, c, d, h; R, S Angstrom
        "C": (1393.6, 346.7, 3.4879, 2.2119, 1.5724e-7, 0.72751, 38049.0, 4.384, -0.57058, 1.8, 2.1),
        "Si": (1830.8, 471.18, 2.4799, 1.7322, 1.1e-6, 0.78734, 100390.0, 16.217, -0.59825, 2.7, 3.0),
    }
    parameters = {}
    for i, (a_i, b_i, lambda_i, mu_i, beta, n, c, d, h, *_) in table.items():
        for j, (a_j, b_j, lambda_j, mu_j, *_) in table.items():
            chi = 1.0 if i == j else 0.9776
            for k in table:
                inner, outer = (np.sqrt(table[i][x] * table[k][x]) for x in (-2, -1))  # of the bond i-k
                parameters[i, j, k] = TersoffParameters(
                    m=3,
                    gamma=1,
                    lambda3=0,
                    c=c,
                    d=d,
                    h=h,
                    n=n,
                    beta=beta,
                    lambda1=(lambda_i + lambda_j) / 2,
                    A=np.sqrt(a_i * a_j),
                    lambda2=(mu_i + mu_j) / 2,
                    B=chi * np.sqrt(b_i * b_j),
                    R=(outer + inner) / 2,
                    D=(outer - inner) / 2,
                )
    return parameters


# ----------------------------------------------------------------------------------------------------- ionic crystals
# Pedone et al. 2006 (10.1021/jp0611018), table 1, pairs with O: symbol -> charge e, D eV, alpha 1/A, r0 A, C eV A^12
PEDONE = {
    "Li": (0.6, 0.001114, 3.429506, 2.681360, 1.0),
    "Na": (0.6, 0.023363, 1.763867, 3.006315, 5.0),
    "K": (0.6, 0.011612, 2.062605, 3.305308, 5.0),
    "Be": (1.2, 0.239919, 2.527420, 1.815405, 1.0),
    "Mg": (1.2, 0.038908, 2.281000, 2.586153, 5.0),
    "Ca": (1.2, 0.030211, 2.241334, 2.923245, 5.0),
    "Sr": (1.2, 0.019623, 1.886000, 3.328330, 3.0),
    "Ba": (1.2, 0.065011, 1.547596, 3.393410, 5.0),
    "Sc": (1.8, 0.000333, 3.144445, 3.200000, 2.6),
    "Ti": (2.4, 0.024235, 2.254703, 2.708943, 1.0),
    "Zr": (2.4, 0.206237, 2.479675, 2.436997, 1.0),
    "Cr": (1.8, 0.399561, 1.785079, 2.340810, 1.0),
    "Mn": (1.2, 0.029658, 1.997543, 2.852075, 3.0),
    "Fe": (1.2, 0.078171, 1.822638, 2.658163, 2.0),
    "Co": (1.2, 0.012958, 2.361272, 2.756282, 3.0),
    "Ni": (1.2, 0.029356, 2.679137, 2.500754, 3.0),
    "Cu": (0.6, 0.090720, 3.802168, 2.055405, 1.0),
    "Ag": (0.6, 0.088423, 3.439162, 2.265956, 1.0),
    "Zn": (1.2, 0.001221, 3.150679, 2.851850, 1.0),
    "Al": (1.8, 0.361581, 1.900442, 2.164818, 0.9),
    "Si": (2.4, 0.340554, 2.006700, 2.100000, 1.0),
    "Ge": (2.4, 0.158118, 2.294230, 2.261313, 5.0),
    "Sn": (2.4, 0.079400, 2.156770, 2.633076, 3.0),
    "P": (3.0, 0.831326, 2.585833, 1.800790, 1.0),
    "Nd": (1.8, 0.014580, 1.825100, 3.398717, 3.0),
    "Gd": (1.8, 0.000132, 2.013000, 4.351589, 3.0),
    "Er": (1.8, 0.040448, 2.294078, 2.837722, 3.0),
    "O": (-1.2, 0.042395, 1.379316, 3.618701, 22.0),
}

# Tosi and Fumi, J. Phys. Chem. Solids 25, 45 (1964), without dispersion: radius Angstrom, outer electrons n
TOSI_FUMI = {
    "Li": (0.816, 2),
    "Na": (1.170, 8),
    "K": (1.463, 8),
    "Rb": (1.587, 8),
    "F": (1.179, 8),
    "Cl": (1.585, 8),
    "Br": (1.716, 8),
    "I": (1.907, 8),
}
ALKALI = ("Li", "Na", "K", "Rb")
HARDNESS = {  # rho, Angstrom
    ("Li", "F"): 0.299,
    ("Li", "Cl"): 0.342,
    ("Li", "Br"): 0.353,
    ("Li", "I"): 0.430,
    ("Na", "F"): 0.330,
    ("Na", "Cl"): 0.317,
    ("Na", "Br"): 0.340,
    ("Na", "I"): 0.386,
    ("K", "F"): 0.338,
    ("K", "Cl"): 0.337,
    ("K", "Br"): 0.335,
    ("K", "I"): 0.355,
    ("Rb", "F"): 0.328,
    ("Rb", "Cl"): 0.318,
    ("Rb", "Br"): 0.335,
    ("Rb", "I"): 0.337,
}

COULOMB_CUTOFF, DAMPING, PAIR_CUTOFF = 8.0, 0.25, 5.5  # Angstrom, 1/Angstrom, Angstrom


def ionic(atoms: Atoms) -> Label:
    """Label rigid ions: damped shifted-force Coulomb with Pedone's Morse terms (oxides) or Born-Mayer (alkali halides)."""
    symbols = np.array(atoms.get_chemical_symbols())
    short_range = _pedone if "O" in symbols else _born_mayer
    charges = np.array([_charge(s, "O" in symbols) for s in symbols])  # (A,) e
    i, j, r, vectors = _pairs(atoms, COULOMB_CUTOFF)  # (E,) each pair once, vectors from i to j
    energy, slope = _coulomb(charges[i] * charges[j], r)  # (E,) eV, eV/Angstrom
    near = r < PAIR_CUTOFF
    energy_near, slope_near = short_range(symbols, charges, i[near], j[near], r[near])
    energy[near] += energy_near
    slope[near] += slope_near

    pull = (slope / r)[:, None] * vectors  # (E, 3) dE/dvector
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, i, pull)
    np.add.at(forces, j, -pull)
    stress = pull.T @ vectors / abs(np.linalg.det(atoms.cell.array))
    return Label(float(energy.sum()) + _coulomb_self(charges), forces, (stress + stress.T) / 2)


def _charge(symbol: str, oxide: bool) -> float:
    if oxide and symbol in PEDONE:
        return PEDONE[symbol][0]
    if not oxide and symbol in TOSI_FUMI:
        return 1.0 if symbol in ALKALI else -1.0
    raise ValueError(f"no ionic parameters for {symbol} in an {'oxide' if oxide else 'alkali halide'}")


def _pairs(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return every pair once: indices, distance, and the vector from i to j."""
    i, j, shifts = find_edges(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    ahead = np.sign(shifts) @ (9, 3, 1) > 0  # of an atom and its own two images at S and -S, one
    once = (i < j) | ((i == j) & ahead)
    i, j = i[once].astype(int), j[once].astype(int)
    vectors = atoms.positions[j] - atoms.positions[i] + shifts[once] @ atoms.cell.array
    return i, j, np.linalg.norm(vectors, axis=1), vectors


def _force_shifted(
    value: Callable[[Any], Any], slope: Callable[[Any], Any], r: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return a pair function and its slope, both brought to zero at the cutoff by a linear term."""
    at, steep = value(cutoff), slope(cutoff)
    return value(r) - at - (r - cutoff) * steep, slope(r) - steep


def _coulomb(products: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Coulomb energies and slopes by Fennell and Gezelter 2006 (10.1063/1.2206581), eqs. 18 and 19."""

    def value(x):
        return scipy.special.erfc(DAMPING * x) / x

    def slope(x):
        return -value(x) / x - 2 * DAMPING / np.sqrt(np.pi) * np.exp(-((DAMPING * x) ** 2)) / x

    energy, gradient = _force_shifted(value, slope, r, COULOMB_CUTOFF)
    return COULOMB * products * energy, COULOMB * products * gradient


def _coulomb_self(charges: np.ndarray) -> float:
    """Return the energy of the neutralising charge on the cutoff sphere and the undamped self term, which has no force."""
    shift = scipy.special.erfc(DAMPING * COULOMB_CUTOFF) / (2 * COULOMB_CUTOFF) + DAMPING / np.sqrt(np.pi)
    return -COULOMB * shift * float((charges**2).sum())


def _pedone(
    symbols: np.ndarray, charges: np.ndarray, i: np.ndarray, j: np.ndarray, r: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return D [(1 - exp(-alpha (r - r0)))^2 - 1] + C / r^12 between oxygen and any ion; cations only repel by charge."""
    oxygen = symbols == "O"
    partner = np.where(oxygen[i], j, i)
    table = np.array([PEDONE[s][1:] for s in symbols])  # (A, 4)
    depth, alpha, r0, wall = (table[partner] * (oxygen[i] | oxygen[j])[:, None]).T  # (E,)

    def value(x):
        return depth * ((1 - np.exp(-alpha * (x - r0))) ** 2 - 1) + wall / x**12

    def slope(x):
        decay = np.exp(-alpha * (x - r0))
        return 2 * depth * alpha * (1 - decay) * decay - 12 * wall / x**13

    return _force_shifted(value, slope, r, PAIR_CUTOFF)


def _born_mayer(
    symbols: np.ndarray, charges: np.ndarray, i: np.ndarray, j: np.ndarray, r: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return 0.211 eV (1 + q_i/n_i + q_j/n_j) exp((sigma_i + sigma_j - r) / rho), with one rho for the whole crystal."""
    present = set(symbols)
    found = [rho for pair, rho in HARDNESS.items() if set(pair) == present]
    if not found:
        raise ValueError(f"no Born-Mayer parameters for {sorted(present)}: one alkali and one halide are expected")
    rho = found[0]
    sigma, electrons = np.array([TOSI_FUMI[s] for s in symbols], dtype=float).T  # (A,)
    share = charges / electrons
    strength = 0.2110 * (1 + share[i] + share[j]) * np.exp((sigma[i] + sigma[j]) / rho)  # (E,) eV

    def value(x):
        return strength * np.exp(-x / rho)

    def slope(x):
        return -value(x) / rho

    return _force_shifted(value, slope, r, PAIR_CUTOFF)
