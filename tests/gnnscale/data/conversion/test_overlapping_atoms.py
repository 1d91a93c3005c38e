"""Overlapping atoms are found wherever the faces of the cell are, and no others."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gnnscale.atoms.neighbors import find_edges
from gnnscale.atoms.structure import Structure
from gnnscale.data.conversion.overlapping_atoms import MIN_DISTANCE, find_overlapping
from tests.support.structures import make_orthogonal


def structure(positions, cell=None, pbc=(False,) * 3):
    positions = np.asarray(positions, float)
    return Structure(
        numbers=np.ones(len(positions), int),
        positions=positions,
        cell=np.zeros((3, 3)) if cell is None else cell,
        pbc=np.array(pbc),
        energy=0.0,
        forces=np.zeros_like(positions),
        stress=np.full((3, 3), np.nan),
        group="",
    )


def drawn(rng):
    """Draw a few atoms near each other, in anything between a molecule and a crystal."""
    pbc = rng.random(3) < 0.5
    cell = (np.diag(rng.uniform(0.5, 4.0, 3)) + rng.normal(size=(3, 3)) * 0.3) @ make_orthogonal(rng)
    positions = rng.uniform(-2, 6, (rng.integers(1, 7), 3)) @ cell / 3
    if rng.random() < 0.7:  # a copy, at about the distance that decides, beyond some faces
        step = rng.normal(size=3)
        step *= rng.uniform(0.5, 1.5) * MIN_DISTANCE / np.linalg.norm(step)
        positions = np.vstack([positions, positions[0] + step + (rng.integers(-2, 3, 3) * pbc) @ cell])
    return structure(positions, cell if pbc.any() else None, pbc)


@given(st.integers(0, 10_000))
def test_it_finds_what_the_neighbour_list_finds(seed):
    rng = np.random.default_rng(seed)
    some = [drawn(rng) for _ in range(20)]
    expected = [len(find_edges(s.positions, s.cell, s.pbc, MIN_DISTANCE)[0]) > 0 for s in some]
    assert find_overlapping(some).tolist() == expected
    assert [bool(find_overlapping([s])[0]) for s in some] == expected, "each alone"


def test_without_atoms_that_coincide_nothing_is_found():
    assert find_overlapping([]).tolist() == []
    assert find_overlapping([structure([[0, 0, 0]])]).tolist() == [False]
    image = np.diag([0.05, 3.0, 3.0])
    assert find_overlapping([structure([[0, 0, 0]], image, (True,) * 3)]).tolist() == [True], "its own image"
    assert find_overlapping([structure([[0, 0, 0]], image, (False, True, True))]).tolist() == [False]
