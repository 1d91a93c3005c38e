"""Copies are found however they are turned, permuted, repeated and split; what is different is not."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from ase.io import iread
from hypothesis import given
from hypothesis import strategies as st

from gnnscale.atoms.structure import Structure
from gnnscale.audit import duplicates
from gnnscale.contract.dataset_card import Split
from gnnscale.data.storage import adios, mapped, packed
from tests.support.raw import require_sample


def molecule(rng, atoms=9):
    sites = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)[rng.permutation(27)[:atoms]]
    positions = 1.3 * sites + rng.normal(size=(atoms, 3)) * 0.15
    return structure(rng.choice([1, 6, 8], atoms), positions, np.zeros((3, 3)), np.zeros(3, bool))


def crystal(rng, atoms=4):
    sites = np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3)[rng.permutation(8)[:atoms]]
    cell = 4 * np.eye(3) + rng.normal(size=(3, 3)) * 0.3
    return structure(
        rng.choice([8, 12, 26], atoms), (sites / 2) @ cell + rng.normal(size=(atoms, 3)) * 0.1, cell, np.ones(3, bool)
    )


def structure(numbers, positions, cell, pbc, energy=0.0, split="train"):
    atoms = len(numbers)
    return Structure(
        numbers, positions, cell, pbc, energy, np.zeros((atoms, 3)), np.full((3, 3), np.nan), "g", "", split
    )


def disguised(rng, one):
    """Return the same structure: turned or reflected, moved, reordered; if periodic, also wrapped and repeated."""
    positions, numbers, cell = one.positions, one.numbers, one.cell
    if one.pbc.any():
        times = rng.integers(1, 3, 3)
        images = np.stack(np.meshgrid(*map(np.arange, times)), -1).reshape(-1, 3)
        positions = (positions[None] + (images @ cell)[:, None]).reshape(-1, 3)
        numbers, cell = np.tile(numbers, len(images)), cell * times[:, None]
        positions = positions + rng.integers(-1, 2, (len(positions), 3)) @ cell
        cell = np.array([[1, 1, 0], [0, 1, 0], [0, -1, 1]]) @ cell  # another basis of the same lattice
    turn, order = np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.permutation(len(numbers))
    moved = positions @ turn + rng.normal(size=3) * 2
    return one._replace(numbers=numbers[order], positions=moved[order], cell=cell @ turn, forces=np.zeros_like(moved))


def pack(structures):
    return packed.pack(structures, Split(), 3.0)[0]


def described(structures):
    return duplicates.describe_structures(pack(structures))


@given(st.integers(0, 10**6), st.sampled_from([molecule, crystal]))
def test_a_disguise_changes_nothing_and_a_displacement_much(seed, kind):
    rng = np.random.default_rng(seed)
    one = kind(rng)
    moved = one._replace(positions=one.positions + rng.normal(size=one.positions.shape) * 0.05)
    found = described([one, disguised(rng, one), moved])
    assert found.composition[0] == found.composition[1] == found.composition[2]
    assert np.abs(found.values[0] - found.values[1]).max() < duplicates.MAX_DIFFERENCE_OF_EQUAL / 2
    assert np.abs(found.values[0] - found.values[2]).max() > duplicates.MAX_DIFFERENCE_OF_EQUAL


def test_elements_and_numbers_of_atoms_are_told_apart():
    rng = np.random.default_rng(0)
    one, box = molecule(rng), crystal(rng)
    other = one._replace(numbers=np.where(np.arange(9) == 3, 7, one.numbers))
    swapped = one._replace(numbers=np.roll(one.numbers, 1))
    twice = one._replace(
        numbers=np.tile(one.numbers, 2),
        positions=np.concatenate([one.positions, one.positions + 99]),
        forces=np.zeros((18, 3)),
    )
    found = described([one, other, twice, swapped, box, box._replace(pbc=np.zeros(3, bool))])
    assert len(set(found.composition[[0, 1, 2, 4, 5]])) == 5, (
        "two molecules far apart are not one; a crystal is no molecule"
    )
    assert (
        found.composition[0] == found.composition[3]
        and np.abs(found.values[0] - found.values[3]).max() > duplicates.MAX_DIFFERENCE_OF_NEAR
    )


def test_fingerprints_of_copies_agree_and_of_others_do_not():
    rng = np.random.default_rng(0)
    base = [kind(rng) for kind in (molecule, crystal) for _ in range(250)]
    one, two = (
        duplicates.compute_fingerprints(pack(structures)) for structures in (base, [disguised(rng, s) for s in base])
    )
    assert len(set(one)) == len(base)
    assert np.mean(one == two) > 0.95
    together = duplicates.compute_fingerprints(pack(base[::-1]))[::-1]
    assert (one == together).all(), "whatever is described beside it"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Two sources with copies of every kind, and what was planted as one would count it by hand."""
    rng, root = np.random.default_rng(3), tmp_path_factory.mktemp("leak")
    a = [molecule(rng) for _ in range(40)] + [crystal(rng) for _ in range(40)]
    names = ["train", "validation", "test"]
    a = [s._replace(split=names[k % 3]) for k, s in enumerate(a)]
    copy = disguised(rng, a[0])._replace(split="test", energy=0.5)  # of a, train -> test of a, another energy
    near = a[3]._replace(positions=a[3].positions + 1e-5 * rng.normal(size=(9, 3)), split="validation")
    b = [
        disguised(rng, a[42]),
        disguised(rng, a[42]),
        disguised(rng, a[43]),
    ]  # a crystal of train twice, one of validation
    b = [s._replace(split="test", energy=9.0 * len(s.numbers)) for s in b]  # another theory, so no contradiction
    b += [molecule(rng)._replace(split=names[k % 3]) for k in range(10)]
    made = {}
    for name, structures in (("a", [*a, copy, near]), ("b", b)):
        adios.write(root / name, structures, Split(), 3.0)
        made[name] = mapped.open_shards(root / name)
    return made


def test_planted_copies_are_counted(planted):
    found = duplicates.count_duplicates(planted)
    assert found.copies == 4 and found.contradictions == 1
    leaks = {(s, p): (c.equal, c.near) for s, parts in found.leaked.items() for p, c in parts.items()}
    assert leaks == {
        ("a", "validation"): (0, 1),
        ("a", "test"): (1, 1),
        ("b", "validation"): (0, 0),
        ("b", "test"): (2, 2),
    }
    twins = {(t.source, t.split, t.twin_source, t.twin_split): (t.count.equal, t.count.near) for t in found.twins}
    assert twins == {
        ("a", "train", "a", "test"): (1, 1),
        ("a", "test", "a", "train"): (1, 1),
        ("a", "train", "a", "validation"): (0, 1),
        ("a", "validation", "a", "train"): (0, 1),
        ("a", "train", "b", "test"): (1, 1),
        ("b", "test", "a", "train"): (2, 2),
        ("a", "validation", "b", "test"): (1, 1),
        ("b", "test", "a", "validation"): (1, 1),
        ("b", "test", "b", "test"): (2, 2),
    }
    assert found.structures["b"] == dict(Counter(duplicates.splits.NAMES[k] for k in planted["b"].split))
    assert duplicates.Leakage.model_validate_json(found.model_dump_json()) == found


def test_pairs_are_those_of_comparing_all_with_all():
    rng = np.random.default_rng(5)
    values = rng.integers(0, 40, (300, 6)).astype(np.float32) * np.float32(4e-4)
    values[:, 1:] = values[:, :1] * rng.integers(1, 3, (300, 1))
    described = duplicates.Descriptors(rng.integers(0, 2, 300).astype(np.uint64), values)
    found = {
        (*sorted((int(a), int(b))), bool(e)) for one in duplicates.find_near_pairs(described) for a, b, e in zip(*one)
    }
    assert len(found) == sum(len(one[0]) for one in duplicates.find_near_pairs(described)), "each pair once"
    expected = set()
    for a, b in combinations(range(300), 2):
        apart = np.abs(values[a] - values[b]).max()
        if described.composition[a] == described.composition[b] and apart <= duplicates.MAX_DIFFERENCE_OF_NEAR:
            expected.add((a, b, bool(apart <= duplicates.MAX_DIFFERENCE_OF_EQUAL)))
    assert found == expected and {e for *_, e in expected} == {True, False}


def test_copies_that_a_published_dataset_has(tmp_path):
    """3BPA: 31 frames of its set at mixed temperatures are those at 300 K; all of them, but nothing within either."""
    made = {}
    for name in ("300K", "mixedT"):
        file = require_sample(f"bpa3_train/train_{name}.xyz")
        frames = [structure(a.numbers, a.positions, np.zeros((3, 3)), np.zeros(3, bool)) for a in iread(file, ":")]
        adios.write(tmp_path / name, frames, Split(), 3.0)
        made[name] = mapped.open_shards(tmp_path / name)
    found = duplicates.count_duplicates(made)
    assert {(t.source, t.twin_source): t.count.near for t in found.twins} == {
        ("300K", "mixedT"): 31,
        ("mixedT", "300K"): 31,
    }
    assert found.copies == 31


def test_nothing_in_common(tmp_path):
    rng = np.random.default_rng(9)
    adios.write(tmp_path / "one", [molecule(rng, 1), molecule(rng, 5)], Split(), 3.0)
    found = duplicates.count_duplicates({"one": mapped.open_shards(tmp_path / "one")})
    assert found.copies == found.contradictions == 0 and not found.twins
