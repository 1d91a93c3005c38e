"""What is selected from the map is what ADIOS2 reads, bit for bit, whatever the shards."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnscale.data.storage import adios
from gnnscale.data.storage.mapped import open_shards
from gnnscale.data.storage.packed import PER_ATOM, Packed, concatenate
from tests.gnnscale.data.storage.test_adios import equal, in_shards, random_structures

COUNT = 45
UNITS = [("a.h5: group C2H6", k) for k in range(20)] + [("b.h5: group H2", 3 * k) for k in range(COUNT - 20)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same from the map and through ADIOS2: shards with and without crystals, with symmetric stresses and others."""
    made, structures = tmp_path_factory.mktemp("shards") / "made", random_structures(COUNT)
    structures[8:16] = [
        s._replace(cell=s.cell * 0, pbc=s.pbc & False, stress=s.stress * np.nan) for s in structures[8:16]
    ]
    structures[24:32] = [s._replace(stress=s.stress + s.stress.T) for s in structures[24:32]]
    row = np.stack([np.arange(300.0), *np.zeros((2, 300))], axis=1)
    structures[40] = structures[40]._replace(
        numbers=np.full(300, 6), positions=row, forces=-row
    )  # more than a byte counts
    in_shards(made, structures, 8, units=UNITS)
    return open_shards(made, check=True), adios.read(made)


def taken(whole, chosen):
    parts = [
        Packed(
            *(a[whole.ptr[k] : whole.ptr[k + 1]] if n in PER_ATOM else a[k : k + 1] for n, a in whole._asdict().items())
        )
        for k in chosen
    ]
    return concatenate(parts)


def test_all_of_it(both):
    mapped, whole = both
    equal(whole, mapped.select(np.arange(COUNT)))
    assert (
        len({shard.variables["stress"].shape[-1] for shard in mapped.manifest.shards if "stress" in shard.variables})
        == 2
    )
    assert any("cell" not in shard.variables for shard in mapped.manifest.shards)


@given(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=70))
def test_any_choice_in_any_order(both, chosen):
    mapped, whole = both
    equal(taken(whole, chosen), mapped.select(np.array(chosen)))


def test_columns_are_those_of_the_whole(both):
    mapped, whole = both
    for name in ("natoms", "energy", "split", "group", "nedges", "pbc", "ptr"):
        np.testing.assert_array_equal(getattr(mapped, name), getattr(whole, name), name)
    assert len(mapped) == COUNT


def test_every_structure_says_where_it_came_from(both):
    mapped, whole = both
    assert [mapped.origin(k) for k in range(COUNT)] == [f"{name} number {number}" for name, number in UNITS]
    assert mapped.units == ("a.h5: group C2H6", "b.h5: group H2")
    assert [(mapped.units[u], n) for u, n in whole.origin] == UNITS


def test_nothing_is_chosen_and_too_much_is_told(both):
    mapped, _ = both
    nothing = mapped.select(np.empty(0, np.int64))
    assert all(len(array) == 0 for array in nothing) and nothing.cell.shape == (0, 3, 3)
    for wrong in (COUNT, -1):
        with pytest.raises(IndexError, match=f"{wrong}.* of {COUNT}"):
            mapped.select(np.array([0, wrong]))


def test_arrays_outlive_the_shards_they_are_of(both):
    """A block is a view into the map, which therefore may not go before it."""
    mapped, whole = both
    again = open_shards(mapped.path)
    block = again.block(0, "positions")
    del again
    np.testing.assert_array_equal(block, whole.positions[: len(block)])
    with pytest.raises(ValueError, match="read-only"):
        block[0] = 0
    held = maps().count("data.0")
    del block
    assert maps().count("data.0") == held - len(mapped.manifest.shards), "and goes with them"


def maps():
    return Path("/proc/self/maps").read_text()


def test_a_selection_is_a_copy(both):
    mapped, whole = both
    selected = mapped.select(np.arange(3))
    selected.positions[:] = 0
    selected.energy[:] = 0
    equal(taken(whole, range(3)), mapped.select(np.arange(3)))
