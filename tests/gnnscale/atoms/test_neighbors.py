"""Neighbour lists compared with a search over all images, and the compiled list compared with vesin."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnscale.atoms import neighbors
from gnnscale.atoms.neighbors import find_edges
from tests.support.corpus import ROOT
from tests.support.structures import brute_force_edges, generators

PERIODIC = st.tuples(st.booleans(), st.booleans(), st.booleans())


def listed(positions, cell, pbc, cutoff) -> list[tuple[int, ...]]:
    i, j, shifts = find_edges(positions, cell, pbc, cutoff)
    return [(int(a), int(b), *map(int, s)) for a, b, s in zip(i, j, shifts, strict=True)]


def skew_cell(rng, size, least):
    while True:
        cell = np.diag(rng.uniform(*size, 3)) + rng.normal(scale=size[0] / 3, size=(3, 3))
        if abs(np.linalg.det(cell)) > least:
            return cell


def drawn(rng, count, pbc, missing, spread, cutoff):
    cell = skew_cell(rng, (1.5, 4), 5)
    if missing != "as is":
        cell[~np.array(pbc)] *= 0 if missing == "zero" else 0.01
    inside = rng.normal(size=(count, 3)) * min(spread, 4.0)
    return inside + rng.normal(size=3) * spread, cell, np.array(pbc)


def test_the_compiled_list_is_used():
    """Without it, all these tests would test vesin."""
    assert neighbors.compiled_library() is not None


@given(
    generators,
    st.integers(1, 6),
    PERIODIC,
    st.sampled_from(("as is", "zero", "tiny")),
    st.sampled_from((1.0, 4.0, 30.0)),
    st.sampled_from((2.0, 4.5)),
)
def test_same_as_brute_force(rng, count, pbc, missing, spread, cutoff):
    """Skew cells smaller than the cutoff, slabs and wires with or without the other vectors, atoms far outside."""
    positions, cell, pbc = drawn(rng, count, pbc, missing, spread, cutoff)
    assert listed(positions, cell, pbc, cutoff) == brute_force_edges(positions, cell, pbc, cutoff)


@pytest.mark.slow
@given(generators, st.integers(60, 400), PERIODIC, st.sampled_from((2.0, 3.0, 5.0)), st.sampled_from((0.02, 0.1)))
def test_large_structures_are_as_vesin_has_them(rng, count, pbc, cutoff, density):
    """The compiled list sorts large structures into bins; some cells are thinner than the cutoff in one direction."""
    cell = skew_cell(rng, (0.5, 1.5), 0.1) * (count / density) ** (1 / 3)
    cell *= (count / density / abs(np.linalg.det(cell))) ** (1 / 3)
    positions = (rng.random((count, 3)) + rng.integers(-2, 3, (count, 3))) @ cell
    ptr = np.array([0, count])
    args = positions, ptr, np.where(np.array(pbc)[:, None], cell, 0)[None], np.array(pbc)[None], cutoff
    for mine, theirs in zip(neighbors.batch_edges(*args), neighbors._by_vesin(*args), strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    assert neighbors.count_edges(*args).tolist() == [len(neighbors.batch_edges(*args).senders)]


@given(generators, st.lists(st.tuples(st.integers(0, 7), PERIODIC), min_size=0, max_size=8))
def test_a_batch_is_its_structures(rng, kinds):
    """The capacity is more than needed, zero, exact and one too small; some structures have no atoms."""
    drew = [drawn(rng, count, pbc, "zero", 4.0, 3.0) for count, pbc in kinds]
    ptr = np.cumsum([0] + [len(x) for x, _, _ in drew])
    join = lambda k, shape: np.concatenate([np.empty((0, *shape))] + [d[k] for d in drew])  # noqa: E731
    positions, cells = join(0, (3,)), np.array([d[1] for d in drew]).reshape(-1, 3, 3)
    pbc = np.array([d[2] for d in drew], bool).reshape(-1, 3)
    singles = [find_edges(*d, 3.0) for d in drew]
    lengths = [len(i) for i, _, _ in singles]
    for room in (None, 0, sum(lengths), max(0, sum(lengths) - 1)):
        found = neighbors.batch_edges(positions, ptr, cells, pbc, 3.0, room)
        assert np.diff(found.ptr).tolist() == lengths == neighbors.count_edges(positions, ptr, cells, pbc, 3.0).tolist()
        for k, (i, j, shifts) in enumerate(singles):
            mine = slice(found.ptr[k], found.ptr[k + 1])
            np.testing.assert_array_equal(found.receivers[mine] - ptr[k], i)
            np.testing.assert_array_equal(found.senders[mine] - ptr[k], j)
            np.testing.assert_array_equal(found.shifts[mine], shifts)


def test_one_atom_in_a_cube_sees_its_images():
    found = listed(np.zeros((1, 3)), np.eye(3) * 2, (True, True, True), 2.1)
    assert found == [(0, 0, *s) for s in sorted([(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)])]


@pytest.mark.parametrize("distance, expected", [(2.0, 0), (np.nextafter(2.0, 0), 2)])
def test_the_cutoff_itself_is_outside(distance, expected):
    positions = np.array([[0, 0, 0], [distance, 0, 0]])
    assert len(listed(positions, np.zeros((3, 3)), (False,) * 3, 2.0)) == expected


@pytest.mark.parametrize("moved", [0.0, 1e3])
def test_every_edge_has_its_opposite_where_atoms_sit_at_the_cutoff(moved):
    """Shells of a perfect crystal lie on the cutoff up to rounding, which must be the same for both directions."""
    rng = np.random.default_rng(0)
    cell = np.eye(3) * 3.61 * 6
    grid = np.stack(np.meshgrid(*[np.arange(6)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    positions = ((grid + np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])) * 3.61).reshape(-1, 3)
    positions = rng.permutation(positions) + moved
    cutoff = float(np.linalg.norm(np.array([0.5, 0.5, 1.0]) * 3.61))
    i, j, shifts = find_edges(positions, cell, np.ones(3, bool), cutoff)
    forth = {(a, b, *s) for a, b, s in zip(i.tolist(), j.tolist(), shifts.tolist())}
    assert forth == {(b, a, *(-x for x in s)) for a, b, s in zip(i.tolist(), j.tolist(), shifts.tolist())}


def test_no_edges_and_types():
    i, j, shifts = find_edges(np.zeros((1, 3), np.float32), np.zeros((3, 3)), np.zeros(3, bool), 5.0)
    assert (i.shape, j.shape, shifts.shape) == ((0,), (0,), (0, 3))
    i, j, shifts = find_edges(np.eye(3, dtype=np.float32), np.zeros((3, 3)), np.zeros(3, bool), 5.0)
    assert (i.dtype, j.dtype, shifts.dtype) == (np.int32, np.int32, np.int16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cell": np.array([[1.0, 0, 0], [2, 0, 0], [0, 0, 1]])}, "linearly dependent"),
        ({"cell": np.zeros((3, 3))}, "linearly dependent"),
        ({"positions": np.array([[0, np.nan, 0], [0, 0, 1]])}, "not finite"),
        ({"positions": np.array([[0, 1e30, 0], [0, 0, 1]])}, "absurdly far"),
        ({"cell": np.eye(3) * 1e-3}, "images would not fit"),
    ],
    ids=["dependent", "zero", "nan", "far", "tiny"],
)
def test_what_has_no_neighbours_is_said_in_words(change, words):
    good = {"positions": np.array([[0, 0, 0], [0, 0, 1.0]]), "cell": np.eye(3) * 3}
    two = [good, good | change]
    with pytest.raises(ValueError, match=f"structure 1 of 2: .*{words}"):
        neighbors.batch_edges(
            np.concatenate([s["positions"] for s in two]),
            np.array([0, 2, 4]),
            np.stack([s["cell"] for s in two]),
            np.ones((2, 3), bool),
            5.0,
        )


def test_shapes_that_disagree_are_told():
    with pytest.raises(ValueError, match=r"1 structures with 3 atoms, but positions are \(2, 3\)"):
        neighbors.batch_edges(np.zeros((2, 3)), np.array([0, 3]), np.zeros((1, 3, 3)), np.zeros((1, 3)), 5.0)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "stale", "foreign"])
def test_without_the_compiled_list_vesin_serves_and_says_so_once(tmp_path, damage):
    """Import a copy of the one file beside no library, an old one, or one of another machine."""
    package = tmp_path / "gnnscale" / "atoms"
    package.mkdir(parents=True)
    for name in ("../__init__.py", "__init__.py", "neighbors.py", "neighbors.cpp"):
        (package / name).write_bytes((ROOT / "gnnscale" / "atoms" / name).read_bytes())
    if damage == "foreign":
        (package / "_neighbors.so").write_bytes(b"\x7fELF of something else")
    if damage == "stale":
        (package / "_neighbors.so").symlink_to(next((ROOT / "gnnscale" / "atoms").glob("_neighbors.*so")))
        with (package / "neighbors.cpp").open("a") as source:
            source.write("// changed\n")
    program = (
        "import numpy as np; from gnnscale.atoms import neighbors\n"
        "for _ in range(2): print(len(neighbors.find_edges(np.eye(3), np.zeros((3, 3)), np.zeros(3, bool), 5.0)[0]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.split() == ["6", "6"], done.stderr
    assert done.stderr.count("UserWarning") == 1 and "vesin is used instead" in done.stderr
    assert "install gnnscale again" in " ".join(done.stderr.split())


@pytest.mark.parametrize("find", [neighbors.batch_edges, neighbors._by_vesin])
def test_threads_find_their_own_edges(find):
    """Batches are made in threads, those of the training and of the validation at once."""
    rng = np.random.default_rng(0)

    def crowd(count: int):
        ptr = np.arange(0, 12 * count + 1, 12)
        x, cells = rng.uniform(0, 6, (ptr[-1], 3)), np.tile(np.eye(3) * 6.5, (count, 1, 1))
        return x, ptr, cells, np.ones((count, 3), bool), 5.0

    cases = [crowd(count) for count in (3, 5, 8)]
    expected = [find(*case) for case in cases]
    with ThreadPoolExecutor(3) as pool:
        found = [pool.map(lambda _, case=case: find(*case), range(60)) for case in cases]
        for edges, there in zip(expected, found, strict=True):
            for mine in there:
                assert all(map(np.array_equal, mine, edges))
