"""Work items hold every unit once, in order, in pieces of similar size."""

from hypothesis import given
from hypothesis import strategies as st

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.conversion import work_items
from gnnscale.data.formats.pieces import Piece
from gnnscale.data.storage import adios

SIZES = st.lists(st.floats(0.0, 1e4), min_size=1, max_size=60)


@given(SIZES, st.integers(1, 80))
def test_pieces_are_consecutive_and_of_like_size(sizes, pieces):
    cut = work_items.divide(sizes, pieces)
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
def test_items_hold_every_unit_once_and_no_more_than_they_should(sizes, seconds):
    pieces = [Piece(str(k), size) for k, size in enumerate(sizes)]
    cut = work_items.group_pieces(pieces, card(seconds))
    assert [piece.name for item in cut for piece in item.pieces] == [piece.name for piece in pieces]
    assert [item.number for item in cut] == list(range(len(cut)))
    assert all(item.total == len(cut) and item.pieces for item in cut)
    most = min(
        adios.STRUCTURES_PER_SHARD, work_items.STRUCTURES_PER_ITEM, max(1.0, work_items.SECONDS_PER_ITEM / seconds)
    ) + max(sizes)
    assert all(item.structures <= most + 1 for item in cut)
