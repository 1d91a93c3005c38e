"""Neighbour lists against trying every image by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnscale.neighbors import edges
from tests.structures import brute_force_edges, generators


def listed(positions, cell, pbc, cutoff) -> list[tuple[int, ...]]:
    i, j, shifts = edges(positions, cell, pbc, cutoff)
    return [(int(a), int(b), *map(int, s)) for a, b, s in zip(i, j, shifts, strict=True)]


@given(
    generators,
    st.integers(1, 6),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from(("as is", "zero", "tiny")),
    st.sampled_from((1.0, 4.0, 30.0)),
    st.sampled_from((2.0, 4.5)),
)
def test_same_as_brute_force(rng, count, pbc, missing, spread, cutoff):
    """Skew cells smaller than the cutoff, slabs and wires with or without the other vectors, atoms far outside."""
    cell = np.diag(rng.uniform(1.5, 4, 3)) + rng.normal(scale=0.5, size=(3, 3))
    while abs(np.linalg.det(cell)) < 5:
        cell = np.diag(rng.uniform(1.5, 4, 3)) + rng.normal(scale=0.5, size=(3, 3))
    if missing != "as is":
        cell[~np.array(pbc)] *= 0 if missing == "zero" else 0.01
    inside = rng.normal(size=(count, 3)) * min(spread, 4.0)
    positions = inside + rng.normal(size=3) * spread
    assert listed(positions, cell, pbc, cutoff) == brute_force_edges(positions, cell, np.array(pbc), cutoff)


def test_one_atom_in_a_cube_sees_its_images():
    found = listed(np.zeros((1, 3)), np.eye(3) * 2, (True, True, True), 2.1)
    assert found == [(0, 0, *s) for s in sorted([(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)])]


@pytest.mark.parametrize("distance, expected", [(2.0, 0), (np.nextafter(2.0, 0), 2)])
def test_the_cutoff_itself_is_outside(distance, expected):
    positions = np.array([[0, 0, 0], [distance, 0, 0]])
    assert len(listed(positions, np.zeros((3, 3)), (False,) * 3, 2.0)) == expected


def test_no_edges_and_types():
    i, j, shifts = edges(np.zeros((1, 3), np.float32), np.zeros((3, 3)), np.zeros(3, bool), 5.0)
    assert (i.shape, j.shape, shifts.shape) == ((0,), (0,), (0, 3))
    i, j, shifts = edges(np.eye(3, dtype=np.float32), np.zeros((3, 3)), np.zeros(3, bool), 5.0)
    assert (i.dtype, j.dtype, shifts.dtype) == (np.int32, np.int32, np.int16)
