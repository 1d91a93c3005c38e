"""A limit on published data takes the same share of each published split."""

from collections import Counter

import pytest

from tests.support import layouts
from tests.support.raw import read_all


def write_splits(folder, copies, write):
    """Write nine frames a file: `copies` files of each split."""
    for split, count in copies.items():
        for k in range(count):
            (folder / split / str(k)).mkdir(parents=True)
            write(folder / split / str(k), layouts.make_crystals(stress=False))


@pytest.mark.parametrize("limit", [1, 9, 18, 40, 1000])
@pytest.mark.parametrize(
    ("name", "write"), [("oc22", layouts.write_oc22), ("oc20", layouts.write_oc22), ("oc20", layouts.write_oc20)]
)
def test_a_limit_keeps_all_published_splits(name, write, limit, tmp_path):
    write_splits(tmp_path, {"train": 4, "val_id": 1, "val_ood": 2}, write)
    options = {"energy": "raw"} if name == "oc20" else {}
    found = Counter(structure.split for structure in read_all(name, tmp_path, limit=limit, **options)[0])
    shares = {"train": 36 / 63, "validation": 9 / 63, "test": 18 / 63}
    assert found.keys() == shares.keys() and sum(found.values()) <= min(limit, 63) + 2
    for split, share in shares.items():
        assert share * min(limit, 63) <= found[split] < share * min(limit, 63) + 1
