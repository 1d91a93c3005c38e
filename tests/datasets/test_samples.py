"""Real samples of the published data sets: counts, statistics, and forces that are derivatives of the energies."""

import itertools
import os
import shutil
from functools import cache
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest

from gnnscale.contract.dataset_card import Split
from gnnscale.data.conversion.reading import check_structure
from gnnscale.data.formats import extxyz
from gnnscale.data.formats.raw_files import Location
from gnnscale.data.storage import splits
from tests.support import layouts
from tests.support.raw import is_same, read_all, require_sample


class Sample(NamedTuple):
    """The expected content of a real file."""

    script: str
    path: str
    structures: int
    atoms: int
    groups: int
    energy: tuple[float, float]  # eV/atom, between
    force_rms: float  # eV/Angstrom
    pbc: tuple[bool, ...]
    options: tuple[tuple[str, str], ...] = ()


NO, YES = (False,) * 3, (True,) * 3


SAMPLES = [  # counts and statistics of shared/DATA.md
    Sample(
        "extxyz", "mptrj_1k/mptrj-random-1k.xyz", 1000, 31312, 998, (-15, 0), 1.27, YES, (("group", "mptrj_traj_id"),)
    ),
    Sample("extxyz", "alexandria_1k", 1000, 7669, 1000, (-15, 1), 0.0205, YES, (("group", "alexandria_id"),)),
    Sample("extxyz", "mad_1k", 1000, 29213, 4, (-11, 1), 4.5, YES, (("group", "subset"),)),
    Sample("extxyz", "bpa3_train/train_300K.xyz", 500, 13500, 500, (-655, -653), 0.95, NO),
    Sample("extxyz", "ethanol_methanol/train.xyz", 1000, 9000, 1, (-470, -460), 1.19, NO, (("group", "config_type"),)),
    Sample("ani1x", "ani1x_release_format", 8, 120, 5, (-1500, -500), 0.792, NO),
    Sample("mptrj", "mptrj_1k/MPtrj_layout_sample.DERIVED.json", 11, 150, 2, (-8, -6), 0.863, YES),
    Sample("oc20", "oc20_relaxations/s2ef_layout.DERIVED", 886, 76473, 20, (-9, -1), 0.35, YES, (("energy", "raw"),)),
    Sample("oc20", "oc20_relaxations/lmdb_layout.DERIVED", 111, 9513, 19, (-0.1, 0.3), 0.392, YES),
    Sample("omat24", "oc20_relaxations/aselmdb_layout.DERIVED", 56, 4787, 19, (-9, -1), 0.464, YES),
    Sample("spice", "spice_format/SPICE-1.1.4_n2.hdf5", 55, 1375, 2, (-1310, -370), 0.86, NO),
]


@cache
def sampled(sample):
    return read_all(sample.script, require_sample(sample.path), **dict(sample.options))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: f"{s.script}-{Path(s.path).name}")
def test_real_files_are_read(sample):
    found, skipped = sampled(sample)
    assert len(found) == sample.structures and skipped.keys() <= {"file that this dataset does not read: *.txt"}
    assert sum(len(s.numbers) for s in found) == sample.atoms and len({s.group for s in found}) == sample.groups
    energies = np.array([s.energy / len(s.numbers) for s in found])
    assert sample.energy[0] < energies.min() and energies.max() < sample.energy[1]
    forces = np.concatenate([s.forces for s in found])
    assert np.sqrt((forces**2).mean()) == pytest.approx(sample.force_rms, rel=0.02)
    for s in found:
        check_structure(s, ("here", 0))
        assert tuple(s.pbc) == sample.pbc
        assert np.isnan(s.stress).all() == (sample.pbc == NO or "oc20" in sample.path)
        nearest = np.linalg.norm(s.positions[:, None] - s.positions[None], axis=-1) + 9 * np.eye(len(s.numbers))
        assert nearest.min() > 0.5  # Angstrom: in Bohr or nm nothing would pass both this and the next
        assert sample.pbc == YES or nearest.min(0).max() < 3.5
    assert len({splits.split_of(s.group, Split(test=0.4)) for s in found}) > 1 or sample.groups < 3


def of(script, part):
    return next(s for s in SAMPLES if s.script == script and part in s.path)


def slope(found, stress=False, reach=0.06):
    """Return the slope of dE over its estimate from forces and stress at both ends, between frames of one group.

    It is 1 if all is right. Only steps so short (Angstrom, of any atom) that the trapezoid is accurate count.
    """
    pairs = []
    for one, two in itertools.pairwise(found):
        if one.group != two.group:
            continue
        moved, mean = two.positions - one.positions, (one.cell + two.cell) / 2
        if one.pbc.all():  # at fixed cell, by the shortest way
            moved = two.positions @ np.linalg.inv(two.cell) - one.positions @ np.linalg.inv(one.cell)
            moved = (moved - np.round(moved)) @ mean
        if np.abs(moved).max() > reach:
            continue
        work = -0.5 * ((one.forces + two.forces) * moved).sum()
        if stress:
            strain = np.linalg.inv(one.cell) @ (two.cell - one.cell)
            work += 0.25 * abs(np.linalg.det(mean)) * ((one.stress + two.stress) * (strain + strain.T)).sum()
        pairs.append((work, two.energy - one.energy))
    assert len(pairs) >= 5
    work, change = np.array(pairs).T
    return (work @ change) / (work @ work)


def test_forces_are_the_derivative_of_the_energy_in_oc20():
    """The frames of relaxations are four steps apart."""
    found, _ = sampled(of("oc20", "s2ef"))
    assert slope(found) == pytest.approx(1.0, abs=0.05)


def test_forces_and_stress_are_derivatives_of_the_energy_in_mptrj():
    """Without its stress, or with one of the wrong sign or unit, this relaxation of the cell would be at 1.4 or more."""
    found, _ = sampled(of("mptrj", "MPtrj"))
    frames = sorted(found, key=lambda s: [int(part) for part in s.label.split("-")[-2:]])
    frames = [s for s in frames if s.group == "mp-1020019"]
    assert slope(frames, stress=True) == pytest.approx(1.0, abs=0.05)
    assert slope(frames, stress=False) > 1.4


@pytest.mark.parametrize(("part", "charge", "least"), [(("ani1x", "release"), 0, 0.85), (("spice", "n2"), 1, 0.95)])
def test_forces_agree_with_another_method(part, charge, least):
    """GFN2-xTB is near DFT: within a tenth or so, where a wrong sign or length is a factor of -1, 0.53 or 1.9."""
    from ase.units import Bohr, Hartree
    from tblite.interface import Calculator

    mine, other = [], []
    for s in sampled(of(*part))[0][:: 1 + 6 * charge]:
        calculator = Calculator("GFN2-xTB", s.numbers, s.positions / Bohr, charge=charge)
        calculator.set("verbosity", 0)
        other.append(-calculator.singlepoint().get("gradient") * Hartree / Bohr)
        mine.append(s.forces)
    a, b = np.concatenate(mine).ravel(), np.concatenate(other).ravel()
    assert np.corrcoef(a, b)[0, 1] > least and (a @ b) / (b @ b) == pytest.approx(1.0, abs=0.2)


def test_qm9s_real_molecules_in_its_published_layout(tmp_path):
    with Location(require_sample("qm9_format/qm9_reduced_100.xyz")) as location:
        frames = list(extxyz.read_frames(location))
    template = layouts.make_molecules(forces=False)[0]
    known = [
        template._replace(
            numbers=f.numbers,
            positions=f.columns["pos"],
            energy=float(f.info["U0"]) * layouts.HARTREE,
            forces=np.full_like(f.columns["pos"], np.nan),
        )
        for f in frames
    ]
    layouts.write_qm9(tmp_path, known)
    found, _ = read_all("qm9", tmp_path, uncharacterized="keep")
    assert len(found) == 100 and all(is_same(one, two) for one, two in zip(found, known))


def test_qm7xs_layout_with_total_energies(tmp_path):
    shutil.copy(require_sample("qm7x_geometries/qm7x_layout.SYNTHETIC.hdf5"), tmp_path / "1000.hdf5")
    shutil.copy(require_sample("qm7x_geometries/DupMols.SYNTHETIC.dat"), tmp_path / "DupMols.dat")
    os.chmod(tmp_path / "1000.hdf5", 0o600)
    with h5py.File(tmp_path / "1000.hdf5", "a") as file:
        groups = [group for molecule in file.values() for group in molecule.values()]
        for group in groups:  # what the valence energies lack of the total ones
            core = sum(
                {1: 0.0, 6: -980.0, 7: -1430.0, 8: -1950.0, 16: -10700.0, 17: -12400.0}[z] for z in group["atNUM"]
            )
            group["ePBE0+MBD"][...] = group["ePBE0+MBD"][...] + core
    found, skipped = read_all("qm7x", tmp_path)
    assert len(found) == 30 and skipped == {"listed as duplicate in DupMols.dat": 6} and len(groups) == 36
    assert 0.5 < slope(found, reach=9.0) < 1.2  # displacements of 1 to 2 Angstrom: the sign and the order, no more
