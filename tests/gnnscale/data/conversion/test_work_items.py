"""How units are put together: every one once, in order, in pieces of like size."""

from hypothesis import given
from hypothesis import strategies as st

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.conversion import work_items
from gnnscale.data.formats.pieces import Unit
from gnnscale.data.storage import adios

SIZES = st.lists(st.floats(0.0, 1e4), min_size=1, max_size=60)


@given(SIZES, st.integers(1, 80))
def test_pieces_are_consecutive_and_of_like_size(sizes, pieces):
    cut = work_items.divided(sizes, pieces)
    assert len(cut) == pieces and [k for piece in cut for k in piece] == list(range(len(sizes)))
    share, most = sum(sizes) / pieces, max(sizes)
    assert all(sum(sizes[k] for k in piece) <= share + most + 1e-6 for piece in cut)


def card(seconds):
    return DatasetCard(
        name="x",
        title="x",
        theory="x",
        citation="x",
        licence="x",
        structures=1,
        atoms_per_structure=10,
        neighbours_per_atom=10,
        seconds_per_structure=seconds,
    )


@given(SIZES, st.sampled_from([1e-4, 1e-2, 10.0]))
def test_lots_hold_every_unit_once_and_no_more_than_they_should(sizes, seconds):
    units = [Unit(str(k), size) for k, size in enumerate(sizes)]
    cut = work_items.lots(units, card(seconds))
    assert [unit.name for lot in cut for unit in lot.units] == [unit.name for unit in units]
    assert [lot.number for lot in cut] == list(range(len(cut))) and all(lot.of == len(cut) and lot.units for lot in cut)
    most = min(adios.SHARD, work_items.LOT, max(1.0, work_items.SECONDS / seconds)) + max(sizes)
    assert all(lot.structures <= most + 1 for lot in cut)
