"""Real samples with forces, and faults of labels to plant in them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gnnscale.atoms import units
from gnnscale.atoms.structure import Structure
from tests.support.raw import read_all, require_sample

HARTREE_PER_BOHR = units.HARTREE / units.BOHR
SETS: dict[str, tuple[str, str, dict[str, object]]] = {  # name -> dataset, path below the samples, options
    "ethanol": ("extxyz", "ethanol_methanol/train.xyz", {}),
    "ethanol, methanol": ("extxyz", "ethanol_methanol/train_eth_meth.xyz", {}),
    "3BPA 300 K": ("extxyz", "bpa3_train/train_300K.xyz", {}),
    "3BPA mixed T": ("extxyz", "bpa3_train/train_mixedT.xyz", {}),
    "ANI-2x": ("pyanitools", "ani2x_format/ani2x_minimal.hdf5", {}),
    "SPICE": ("spice", "spice_format/SPICE-1.1.4_n2.hdf5", {}),
    "OC20": ("ase_files", "oc20_relaxations/traj", {}),
    "MoNbTaW": ("pymatgen_json", "MoNbTaW", {}),
    "Mo AIMD": ("pymatgen_json", "MoNbTaW/Mo_AIMD.json", {}),
    "W elastic": ("pymatgen_json", "MoNbTaW/W_Elastic.json", {}),
    "MoW alloys": ("pymatgen_json", "MoNbTaW/MoW_SS.json", {}),
    "oxides": ("ase_files", "oxides_pbe/oxides.db", {}),
    "MAD": ("extxyz", "mad_1k/mad_small_val.xyz", {}),
    "MPtrj": ("extxyz", "mptrj_1k/mptrj-random-1k.xyz", {"group": "mptrj_traj_id"}),
    "Alexandria": ("extxyz", "alexandria_1k/alexandria-random-1k.xyz", {}),
}


def read_set(name: str, most: int = 1500) -> list[Structure]:
    """Return at most so many structures of a set, spread evenly."""
    dataset, path, options = SETS[name]
    found, _ = read_all(dataset, require_sample(path), **options)
    known = [s for s in found if not s.is_reference]
    return [known[k] for k in np.unique(np.linspace(0, len(known) - 1, min(most, len(known))).astype(int))]


def scale_forces(factor: float) -> Callable[[Structure], Structure]:
    return lambda s: s._replace(forces=s.forces * factor)


def scale_stress(factor: float) -> Callable[[Structure], Structure]:
    return lambda s: s._replace(stress=s.stress * factor)


FORCE_FAULTS = {
    "flipped": scale_forces(-1),
    "x 1000": scale_forces(1000),
    "/ 27.2": scale_forces(1 / units.HARTREE),
    "x 51.4": scale_forces(HARTREE_PER_BOHR),
    "/ 51.4": scale_forces(1 / HARTREE_PER_BOHR),
    "/ 1.89": scale_forces(units.BOHR),
}
ENERGY_FAULTS = {"per atom": lambda s: s._replace(energy=s.energy / len(s.numbers))}
STRESS_FAULTS = {
    "flipped": scale_stress(-1),
    "in GPa": scale_stress(1 / units.GPA),
    "in kbar": scale_stress(1 / units.KBAR),
    "virial": lambda s: s._replace(stress=-s.stress * abs(np.linalg.det(s.cell))),
}
