"""Random crystals, oxide slabs and slabs with adsorbates, each with the potential that labels it, and their relaxation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import ase.build
import numpy as np
from ase import Atoms
from ase.spacegroup import crystal

from gnnscale.data.generate.potentials import HARDNESS, PEDONE, TOSI_FUMI, Label, emt, ionic, tersoff


class RelaxationStart(NamedTuple):
    """The structure at which a relaxation begins, and the potential that labels it."""

    atoms: Atoms
    free: np.ndarray  # (A,) bool, true for atoms that the relaxation may move; forces of all atoms are complete
    label: Callable[[Atoms], Label]
    name: str


FCC = {"Al": 4.00, "Ni": 3.49, "Cu": 3.59, "Pd": 3.88, "Ag": 4.06, "Pt": 3.92, "Au": 4.06}  # Angstrom, of EMT
FACES = (ase.build.fcc111, ase.build.fcc100, ase.build.fcc110)
SIZES = ((2, 2, 3), (2, 2, 4), (3, 2, 3), (3, 3, 3), (2, 3, 4))  # atoms along both sides, layers
ADSORBATES = ("H", "O", "N", "C", "OH", "CO", "NH", "CH", "NO", "NH2", "CH3", "H2O", "NH3", "CH2_s1A1d", "N2", "O2")

IONIC_RADII = {  # Angstrom, Shannon 1976, with O 1.38: only a start for the lattice constant
    "Li": 0.76,
    "Na": 1.02,
    "K": 1.38,
    "Mg": 0.72,
    "Ca": 1.00,
    "Sr": 1.18,
    "Ba": 1.35,
    "Mn": 0.83,
    "Fe": 0.78,
    "Co": 0.745,
    "Ni": 0.69,
    "Zn": 0.74,
    "Ti": 0.605,
    "Zr": 0.72,
    "Si": 0.40,
    "Ge": 0.53,
    "Sn": 0.69,
    "Al": 0.535,
    "Cr": 0.615,
    "Sc": 0.745,
    "Nd": 0.983,
    "Gd": 0.938,
    "Er": 0.89,
}
OXYGEN = 1.38
OXIDES = {  # prototype -> cations on each site
    "rocksalt": (("Mg", "Ca", "Sr", "Ba", "Mn", "Fe", "Co", "Ni", "Zn"),),
    "rutile": (("Ti", "Sn", "Ge", "Si"),),
    "fluorite": (("Zr",),),
    "antifluorite": (("Li", "Na", "K"),),
    "corundum": (("Al", "Cr", "Sc", "Nd", "Gd", "Er"),),
    "perovskite": (("Ca", "Sr", "Ba"), ("Ti", "Zr", "Sn")),
    "spinel": (("Mg", "Zn", "Fe", "Co", "Ni", "Mn"), ("Al", "Cr")),
}
PROTOTYPES: dict[str, tuple[int, float, float, dict[str, tuple[float, float, float]]]] = {
    # space group, c / a, angle between a and b in degrees, scaled position of each element
    "rocksalt": (225, 1, 90, {"Mg": (0, 0, 0), "O": (0.5, 0.5, 0.5)}),
    "rutile": (136, 0.645, 90, {"Mg": (0, 0, 0), "O": (0.305, 0.305, 0)}),
    "fluorite": (225, 1, 90, {"Mg": (0, 0, 0), "O": (0.25, 0.25, 0.25)}),
    "antifluorite": (225, 1, 90, {"Mg": (0.25, 0.25, 0.25), "O": (0, 0, 0)}),
    "corundum": (167, 2.73, 120, {"Mg": (0, 0, 0.352), "O": (0.306, 0, 0.25)}),
    "perovskite": (221, 1, 90, {"Mg": (0.5, 0.5, 0.5), "Al": (0, 0, 0), "O": (0.5, 0, 0)}),
    "spinel": (227, 1, 90, {"Mg": (1 / 8,) * 3, "Al": (0.5,) * 3, "O": (0.262,) * 3}),
}
COVALENT = {"Si": 5.43, "SiC": 4.32, "C": 3.57}  # Angstrom, of Tersoff


# -------------------------------------------------------------------------------------------------------------- oxides
@cache
def _prototype(name: str) -> Atoms:
    """Return scaled positions and cell shape, with dummy elements (Mg first cation, Al second) and unit lattice constant."""
    spacegroup, height, angle, sites = PROTOTYPES[name]
    cell = [1.0, 1.0, height, 90, 90, angle]
    setting, primitive = (2, True) if name == "spinel" else (1, False)  # 14 atoms instead of 56
    symbols, basis = list(sites), list(sites.values())
    atoms = crystal(symbols, basis, spacegroup=spacegroup, cellpar=cell, setting=setting, primitive_cell=primitive)
    return Atoms(atoms.symbols, scaled_positions=atoms.get_scaled_positions(), cell=atoms.cell, pbc=True)


def _lattice_constant(name: str, cations: list[str]) -> float:
    """Return the lattice constant for touching ions; corundum and rutile are scaled from Al2O3 and TiO2: Angstrom."""
    bond = IONIC_RADII[cations[-1]] + OXYGEN
    return {
        "rocksalt": 2 * bond,
        "rutile": 4.59 * bond / (0.605 + OXYGEN),
        "fluorite": 5.10,
        "antifluorite": 4 / np.sqrt(3) * bond,
        "corundum": 4.76 * bond / (0.535 + OXYGEN),
        "perovskite": 2 * (bond - 0.02),
        "spinel": 8.10 if cations[-1] == "Al" else 8.35,
    }[name]


def draw_oxide(rng: np.random.Generator, prototypes: tuple[str, ...] = tuple(OXIDES)) -> Atoms:
    """Draw a perfect oxide crystal, unrelaxed."""
    name = prototypes[rng.integers(len(prototypes))]
    cations = [str(rng.choice(site)) for site in OXIDES[name]]
    atoms = _prototype(name).copy()
    atoms.set_cell(atoms.cell.array * _lattice_constant(name, cations), scale_atoms=True)
    atoms.symbols = [{"Mg": cations[0], "Al": cations[-1]}.get(s, s) for s in atoms.get_chemical_symbols()]
    assert abs(sum(PEDONE[s][0] for s in atoms.get_chemical_symbols())) < 1e-9, f"{name} {cations} is charged"
    return atoms


def draw_oxide_slab(rng: np.random.Generator) -> RelaxationStart:
    """Draw a (100) or (110) slab with its lower half fixed; in a third of them one oxygen is displaced, none removed."""
    solid = draw_oxide(rng, ("rocksalt", "rutile", "perovskite", "corundum", "antifluorite", "fluorite"))
    face = ((1, 0, 0), (1, 1, 0))[rng.integers(2)]
    slab = Atoms(ase.build.surface(solid, face, 1 if len(solid) > 11 else 2, vacuum=6.0))  # Angstrom
    height = slab.positions[:, 2]
    free = height > np.median(height) - 0.3
    if rng.random() < 0.35:
        top = max(np.flatnonzero(slab.numbers == 8), key=lambda i: height[i])
        slab.positions[top] += [*rng.normal(0, 0.6, 2), rng.uniform(0.3, 1.2)]
    slab.positions += rng.normal(0, 0.05, (len(slab), 3))
    return RelaxationStart(slab, free, ionic, f"slab {slab.get_chemical_formula()}")


# ----------------------------------------------------------------------------------------------------------- adsorbates
def draw_adsorbate_slab(rng: np.random.Generator) -> RelaxationStart:
    """Draw a small molecule above an fcc metal or alloy slab, whose lower half is fixed."""
    metals = [str(m) for m in rng.choice(list(FCC), 2)]
    share = float(rng.choice([0.0, 0.25, 0.5]))
    constant = FCC[metals[0]] * (1 - share) + FCC[metals[1]] * share
    slab = FACES[rng.integers(3)](metals[0], SIZES[rng.integers(len(SIZES))], a=constant, vacuum=7.0)
    slab.symbols[rng.permutation(len(slab))[: round(share * len(slab))]] = metals[1]
    height = slab.positions[:, 2]
    free = height > height.min() + 0.45 * np.ptp(height)

    name = ADSORBATES[rng.integers(len(ADSORBATES))]
    molecule = Atoms(name) if len(name) == 1 else ase.build.molecule(name)
    molecule.rotate(float(rng.uniform(0, 360)), rng.normal(size=3))
    molecule.positions -= molecule.positions[molecule.positions[:, 2].argmin()]
    site = rng.random(2) @ slab.cell.array[:2, :2]
    molecule.positions += [*site, height.max() + rng.uniform(1.1, 2.0)]  # Angstrom

    atoms = Atoms(slab) + molecule
    atoms.positions += rng.normal(0, 0.08, (len(atoms), 3))
    free = np.concatenate([free, np.ones(len(molecule), dtype=bool)])
    return RelaxationStart(atoms, free, emt, f"{molecule.get_chemical_formula()} on {slab.get_chemical_formula()}")


# ------------------------------------------------------------------------------------------------------------- crystals
def _alloy(rng: np.random.Generator) -> tuple[Atoms, Callable]:
    metals = [str(m) for m in rng.choice(list(FCC), 2)]
    repeat = ((1, 1, 1), (2, 1, 1), (2, 2, 1))[rng.integers(3)]
    atoms = ase.build.bulk(metals[0], "fcc", a=(FCC[metals[0]] + FCC[metals[1]]) / 2, cubic=True) * repeat
    atoms.symbols[rng.permutation(len(atoms))[: rng.integers(len(atoms) + 1)]] = metals[1]
    return atoms, emt


def _oxide(rng: np.random.Generator) -> tuple[Atoms, Callable]:
    return draw_oxide(rng), ionic


def _halide(rng: np.random.Generator) -> tuple[Atoms, Callable]:
    cation, anion = list(HARDNESS)[rng.integers(len(HARDNESS))]
    constant = 2.04 * (TOSI_FUMI[cation][0] + TOSI_FUMI[anion][0])
    return ase.build.bulk(cation + anion, "rocksalt", a=constant, cubic=bool(rng.integers(2))), ionic


def _covalent(rng: np.random.Generator) -> tuple[Atoms, Callable]:
    name = list(COVALENT)[rng.integers(len(COVALENT))]
    atoms = ase.build.bulk("SiC", "zincblende", a=COVALENT[name], cubic=True)
    if name != "SiC":
        atoms.symbols[:] = name
    return atoms, tersoff


def draw_strained_crystal(rng: np.random.Generator) -> RelaxationStart:
    """Draw an alloy, oxide, alkali halide or covalent crystal, strained by a few percent and rattled."""
    draw = (_alloy, _oxide, _halide, _covalent)[rng.choice(4, p=[0.35, 0.35, 0.18, 0.12])]
    atoms, label = draw(rng)
    shear = rng.normal(0, 0.03, (3, 3))
    strain = (1 + rng.normal(0, 0.03)) * np.eye(3) + (shear + shear.T) / 2
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.positions += rng.choice([0.02, 0.08, 0.15, 0.25]) * rng.normal(size=(len(atoms), 3))  # Angstrom
    return RelaxationStart(atoms, np.ones(len(atoms), dtype=bool), label, atoms.get_chemical_formula())


# ----------------------------------------------------------------------------------------------------------- relaxation
def follow_relaxation(
    start: RelaxationStart, rng: np.random.Generator, frames: int, every: int, step: float
) -> Iterator[tuple[Atoms, Label]]:
    """Yield atoms and label after `every` steps downhill: `step` Angstrom^2/eV along the forces, at most 0.12 Angstrom.

    Crystals (periodic in all directions) follow their stress too. Noise keeps late frames from being copies.
    """
    atoms = start.atoms.copy()
    for count in range((frames - 1) * every + 1):
        label = start.label(atoms)
        if count % every == 0:
            yield atoms.copy(), label
        if not np.isfinite(label.forces).all():
            return
        move = label.forces * step
        length = np.linalg.norm(move, axis=1, keepdims=True)
        move *= np.minimum(1, 0.12 / np.maximum(length, 1e-9))
        move += rng.normal(0, 0.015, move.shape)
        atoms.positions[start.free] += move[start.free]
        if atoms.pbc.all():
            strain = np.clip(-0.2 * label.stress, -0.01, 0.01)  # a bulk modulus is about 1 eV/Angstrom^3
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
