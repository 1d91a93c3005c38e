"""Initial crystals and slabs are neutral and sensible; relaxations lower the energy and keep fixed atoms."""

import numpy as np
import pytest
from ase import Atoms

from gnnscale.data.generate.crystals import (
    OXIDES,
    draw_adsorbate_slab,
    draw_oxide,
    draw_oxide_slab,
    draw_strained_crystal,
    follow_relaxation,
)

STARTS = (draw_adsorbate_slab, draw_oxide_slab, draw_strained_crystal)


def closest(atoms: Atoms) -> float:
    repeated = atoms * np.where(atoms.pbc, 2, 1)
    distances = repeated.get_all_distances(mic=True)
    return distances[distances > 0].min()


@pytest.mark.parametrize(
    "name, atoms",
    [
        ("rocksalt", 8),
        ("rutile", 6),
        ("fluorite", 12),
        ("antifluorite", 12),
        ("corundum", 30),
        ("perovskite", 5),
        ("spinel", 14),
    ],
)
def test_oxide_prototypes(name, atoms):
    for seed in range(6):  # oxide() itself asserts that charges cancel
        made = draw_oxide(np.random.default_rng(seed), (name,))
        assert len(made) == atoms
        assert 1.6 < closest(made) < 2.9
    assert name in OXIDES


@pytest.mark.parametrize("begin", STARTS)
def test_starts_are_sane(begin):
    for seed in range(30):
        atoms, free, _, name = begin(np.random.default_rng(seed))
        assert 2 <= len(atoms) <= 60 and name
        assert closest(atoms) > 0.5
        assert atoms.cell.rank == 3 and atoms.cell.volume > 0
        if begin is draw_strained_crystal:
            assert atoms.pbc.all() and free.all()
        else:
            assert atoms.pbc.tolist() == [True, True, False]
            assert 0.1 < free.mean() < 1
            assert atoms.positions[free, 2].max() > atoms.positions[~free, 2].max()
            height = atoms.cell[2, 2]
            assert abs(atoms.cell[2, :2]).max() < 1e-9 and height - np.ptp(atoms.positions[:, 2]) > 8.0


@pytest.mark.parametrize("begin", STARTS)
def test_relaxations_go_down_and_hold_fixed_atoms(begin):
    falls = []
    for seed in range(6):
        start = begin(np.random.default_rng(seed))
        before = start.atoms.positions.copy()
        frames = list(follow_relaxation(start, np.random.default_rng(seed), frames=4, every=4, step=0.02))
        assert len(frames) == 4
        assert (start.atoms.positions == before).all()
        assert (frames[0][0].positions == before).all()
        assert all((atoms.positions[~start.free] == before[~start.free]).all() for atoms, _ in frames)
        assert all(np.isfinite(label.stress).all() for _, label in frames)
        falls.append((frames[0][1].energy - frames[-1][1].energy) / len(before))
    assert np.median(falls) > 0.01  # eV/atom


def test_crystals_follow_their_stress():
    start = draw_strained_crystal(np.random.default_rng(3))
    start.atoms.set_cell(start.atoms.cell.array * 1.05, scale_atoms=True)
    first, *_, last = follow_relaxation(start, np.random.default_rng(0), frames=4, every=4, step=0.02)
    assert last[0].get_volume() < first[0].get_volume()
    assert abs(np.trace(last[1].stress)) < abs(np.trace(first[1].stress))
