"""Records of structures in memory: what is put in comes out, to the bit. On several ranks: tests/integration."""

import numpy as np
import pytest

from gnnscale.data.storage import mapped

pytest.importorskip("mpi4py")

from gnnscale.data.storage import node_store


@pytest.fixture(scope="module", params=["bulk", "organic"])
def there(request, converted):
    return mapped.open_shards(converted[f"convert/{request.param}"] / "shards")


def assert_same(one, other):
    for name, a, b in zip(one._fields, one, other):
        assert a.dtype == b.dtype and a.shape == b.shape, name
        assert a.tobytes() == b.tobytes(), name


def test_records_are_what_was_put_in(there):
    chosen = np.random.default_rng(0).permutation(len(there))
    packed, flags = there.select(chosen), there.flags[chosen]
    words = node_store.encode_records(packed, flags)
    sizes = node_store.record_sizes(packed.natoms, flags)
    assert words.nbytes == sizes.sum() and (sizes % 8 == 0).all()
    assert_same(node_store.decode_records(words, np.cumsum(sizes) - sizes), packed)


def test_a_store_of_one_rank_is_the_shards(there):
    row = np.arange(1, len(there), 2)
    held = node_store.NodeStore(there, row)
    chosen = np.random.default_rng(1).integers(0, len(row), 30)
    assert_same(held.select(chosen), there.select(row[chosen]))
    assert_same(held.select(chosen[:0]), there.select(chosen[:0]))
    assert len(held) == len(row) and held.begin.nbytes <= 16 * (len(row) + 1), "index"
    held.close()
