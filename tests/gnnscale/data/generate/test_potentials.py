"""Every label engine: forces and stress are derivatives of the energy, energies add up, crystals have their size."""

from functools import partial

import ase.build
import numpy as np
import pytest
from ase import Atoms

from gnnscale.data.generate.potentials import COULOMB_CUTOFF, Unlabelled, emt, ionic, tersoff, xtb


def rattled(atoms: Atoms, by: float = 0.1) -> Atoms:
    atoms = atoms.copy()
    atoms.positions += by * np.random.default_rng(5).normal(size=atoms.positions.shape)
    return atoms


def alloy() -> Atoms:
    atoms = ase.build.bulk("Cu", cubic=True, a=3.8)
    atoms.symbols[0] = "Au"
    return atoms


def with_adsorbate() -> Atoms:
    slab = ase.build.fcc111("Pd", (2, 2, 3), vacuum=7.0)
    return slab + Atoms("CO", slab.positions[-1] + [[0, 0, 1.8], [0, 0, 3.0]])


def magnesia_slab() -> Atoms:
    return Atoms(ase.build.surface(ase.build.bulk("MgO", "rocksalt", a=4.2, cubic=True), (1, 1, 0), 2, vacuum=6.0))


def perovskite() -> Atoms:
    sites = [(0.5, 0.5, 0.5), (0, 0, 0), (0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5)]
    return Atoms("CaTiO3", scaled_positions=sites, cell=[3.9] * 3, pbc=True)


PERIODIC = {
    "alloy": (alloy, emt),
    "adsorbate": (with_adsorbate, emt),
    "oxide": (perovskite, ionic),
    "oxide slab": (magnesia_slab, ionic),
    "halide": (partial(ase.build.bulk, "NaCl", "rocksalt", a=5.6), ionic),
    "SiC": (partial(ase.build.bulk, "SiC", "zincblende", a=4.4, cubic=True), tersoff),
    "Si": (partial(ase.build.bulk, "Si", a=5.3), tersoff),
}
MOLECULAR = {
    method: (partial(ase.build.molecule, "CH3CONH2"), partial(xtb, method=method))
    for method in ("GFN1-xTB", "GFN2-xTB")
}
ALL = {**PERIODIC, **MOLECULAR}


@pytest.mark.parametrize("name", ALL)
def test_forces_are_minus_the_gradient(name):
    make, label = ALL[name]
    atoms, step = rattled(make()), 1e-3 if name in MOLECULAR else 1e-5  # SCF convergence limits xTB
    forces = label(atoms).forces
    for seed in range(3):
        direction = np.random.default_rng(seed).normal(size=forces.shape)
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions += sign * step * direction
            energies.append(label(moved).energy)
        slope = (energies[0] - energies[1]) / (2 * step)
        assert slope == pytest.approx(-(forces * direction).sum(), abs=5e-3 if name in MOLECULAR else 1e-5)
        assert abs(slope) > 0.1  # else nothing was tested


@pytest.mark.parametrize("name", PERIODIC)
def test_stress_is_the_strain_derivative(name):
    make, label = PERIODIC[name]
    atoms, step = rattled(make()), 1e-6
    stress = label(atoms).stress
    assert stress == pytest.approx(stress.T)
    for seed in range(3):
        strain = np.random.default_rng(seed).normal(size=(3, 3))
        strain = (strain + strain.T) / 2
        energies = []
        for sign in (1, -1):
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ (np.eye(3) + sign * step * strain), scale_atoms=True)
            energies.append(label(strained).energy)
        slope = (energies[0] - energies[1]) / (2 * step)
        assert slope == pytest.approx((stress * strain).sum() * atoms.get_volume(), abs=2e-4)


@pytest.mark.parametrize("name", ALL)
def test_no_net_force(name):
    make, label = ALL[name]
    assert np.abs(label(rattled(make())).forces.sum(0)).max() < 1e-8


@pytest.mark.parametrize("name", PERIODIC)
def test_a_supercell_has_its_multiple_of_the_energy(name):
    make, label = PERIODIC[name]
    atoms = rattled(make())
    one, two = label(atoms), label(atoms * ((2, 1, 1) if name == "adsorbate" else (1, 2, 1)))
    assert two.energy == pytest.approx(2 * one.energy, abs=1e-8)
    assert two.forces == pytest.approx(np.concatenate([one.forces] * 2), abs=1e-8)
    assert two.stress == pytest.approx(one.stress, abs=1e-10)


@pytest.mark.parametrize("name", ["adsorbate", "oxide slab"])
def test_vacuum_separates_slabs(name):
    make, label = PERIODIC[name]
    slab, stacked = rattled(make()), rattled(make())
    assert slab.pbc.tolist() == [True, True, False]
    stacked.pbc = True
    assert label(stacked).energy == pytest.approx(label(slab).energy, abs=1e-9)
    assert label(stacked).forces == pytest.approx(label(slab).forces, abs=1e-9)


@pytest.mark.parametrize("method", MOLECULAR)
def test_distant_molecules_add_up(method):
    label = MOLECULAR[method][1]
    water, methane = ase.build.molecule("H2O"), ase.build.molecule("CH4")
    both = water.copy()
    methane.positions += [60, 0, 0]
    both += methane
    # Coulomb of two neutral molecules is not cut off: at 60 A dipole and octupole are left, far below 1e-4 eV
    assert label(both).energy == pytest.approx(label(water).energy + label(methane).energy, abs=1e-4)
    assert np.isnan(label(water).stress).all()


def test_ions_do_not_feel_the_cutoff():
    def pair(r):
        return ionic(Atoms("MgO", [(0, 0, 0), (r, 0, 0)], cell=[40] * 3, pbc=False))

    for cutoff in (5.5, COULOMB_CUTOFF):
        inside, outside = pair(cutoff - 1e-5), pair(cutoff + 1e-5)
        assert inside.energy == pytest.approx(outside.energy, abs=1e-5)
        assert inside.forces == pytest.approx(outside.forces, abs=1e-4)
    assert np.abs(pair(COULOMB_CUTOFF + 0.01).forces).max() == 0


def lattice_constant(atoms: Atoms, label) -> float:
    """Angstrom; from a parabola through the lowest three of a scan of +-6 % about the given cubic cell."""
    lengths = atoms.cell[0, 0] * np.linspace(0.94, 1.06, 13)
    energies = []
    for length in lengths:
        scaled = atoms.copy()
        scaled.set_cell(np.eye(3) * length, scale_atoms=True)
        energies.append(label(scaled).energy)
    lowest = int(np.argmin(energies))
    near = slice(lowest - 1, lowest + 2)
    square, linear, _ = np.polyfit(lengths[near], energies[near], 2)
    return -linear / (2 * square)


@pytest.mark.parametrize(
    "formula, structure, measured, label",
    [
        ("MgO", "rocksalt", 4.21, ionic),
        ("CaO", "rocksalt", 4.81, ionic),
        ("NaCl", "rocksalt", 5.64, ionic),
        ("LiF", "rocksalt", 4.03, ionic),
        ("SiC", "zincblende", 4.36, tersoff),
        ("Cu", "fcc", 3.61, emt),
    ],
)
def test_lattice_constants_are_near_experiment(formula, structure, measured, label):
    atoms = ase.build.bulk(formula, structure, a=measured, cubic=True)
    assert lattice_constant(atoms, label) == pytest.approx(measured, rel=0.015)  # worst is NaCl, 1.4 %


@pytest.mark.parametrize("element, constant, cohesive", [("Si", 5.432, -4.63), ("C", 3.566, -7.37)])
def test_tersoff_as_published(element, constant, cohesive):
    atoms = ase.build.bulk(element, "diamond", a=constant, cubic=True)
    assert lattice_constant(atoms, tersoff) == pytest.approx(constant, abs=0.01)
    assert tersoff(atoms).energy / 8 == pytest.approx(cohesive, rel=0.01)


@pytest.mark.parametrize("name", ["alloy", "halide", "SiC"])
def test_a_stretched_crystal_is_in_tension(name):
    make, label = PERIODIC[name]
    atoms = make()
    atoms.set_cell(atoms.cell.array * 1.06, scale_atoms=True)
    assert np.trace(label(atoms).stress) > 0


@pytest.mark.parametrize("method", MOLECULAR)
def test_no_density_is_no_label(method):
    torn = ase.build.molecule("CH3CONH2")
    torn.positions *= 3  # all bonds broken: no gap, no closed shells
    with pytest.raises(Unlabelled, match=f"{method} found no self-consistent density"):
        xtb(torn, method)


@pytest.mark.parametrize("formula", ["AuO", "NaCu", "NaKCl"])
def test_ions_without_parameters_are_refused(formula):
    atoms = Atoms(formula, np.arange(3 * len(Atoms(formula))).reshape(-1, 3), cell=[9] * 3, pbc=True)
    with pytest.raises(ValueError, match="parameters for"):
        ionic(atoms)
