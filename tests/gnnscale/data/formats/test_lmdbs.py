"""LMDB files: pickles that may not execute anything, keys that are missing, ranges of keys."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from gnnscale.contract.errors import BadFile
from gnnscale.data.formats import lmdbs
from gnnscale.data.formats.raw_files import Location
from tests.support import layouts
from tests.support.raw import read_all, read_until_fault


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def test_pickles_that_would_execute_something_are_refused(tmp_path):
    import torch

    mark = tmp_path / "executed"
    inside = Evil(os.system, f"touch {mark}")
    plain = pickle.dumps(inside)
    for graph, word in (
        (plain, "system"),
        (layouts.pickle_graph({"pos": inside}), "system"),
        (pickle.dumps(Evil(eval, "1+1")), "builtins.eval"),
        (pickle.dumps(Evil(torch.storage._load_from_bytes, plain)), "system"),
        (pickle.dumps(Evil(torch.load, str(mark))), "torch.serialization.load"),
        (pickle.dumps(np.array([inside], dtype=object)), "system"),
        (b"cgnnscale.contract.files\nwrite\n.", "gnnscale.contract.files.write"),
    ):
        with pytest.raises(BadFile, match="could execute anything") as told:
            lmdbs.unpickle(Location(tmp_path / "data.lmdb"), graph)
        assert word in str(told.value)
    assert not mark.exists()


def test_a_tensor_cannot_reach_beyond_its_memory():
    import torch

    stored = lmdbs.TensorStorage(np.arange(6.0))
    assert lmdbs.rebuild_tensor(stored, 1, (2, 2), (3, 1)).tolist() == [[1, 2], [4, 5]]
    for offset, size, stride in ((0, (7,), (1,)), (1, (2, 3), (3, 1)), (-1, (2,), (1,)), (0, (2,), (-1,))):
        with pytest.raises(ValueError, match="a tensor of size"):
            lmdbs.rebuild_tensor(stored, offset, size, stride)
    for kind in (torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8):
        made = torch.arange(6).reshape(2, 3).to(kind).T
        np.testing.assert_array_equal(lmdbs.unpickle(Location(Path("x")), pickle.dumps(made)), made.numpy())


def test_an_lmdb_that_lacks_a_key_or_a_length(tmp_path):
    known = layouts.make_crystals(stress=False)
    content = {str(k).encode(): layouts.pickle_graph(layouts.make_graph(k, s)) for k, s in enumerate(known)}
    layouts.write_lmdb(tmp_path / "a.lmdb", content)
    assert len(read_all("oc22", tmp_path)[0]) == 9
    (tmp_path / "a.lmdb").unlink()
    del content[b"7"]
    layouts.write_lmdb(tmp_path / "a.lmdb", content | {b"length": pickle.dumps(9)})
    kept, fault = read_until_fault("oc22", tmp_path)
    assert len(kept) == 7 and "a.lmdb: key 7 of 9: missing" in str(fault)
    spoiled = layouts.make_graph(2, known[2])
    del spoiled["force"]
    layouts.write_lmdb(tmp_path / "a.lmdb", content | {b"2": layouts.pickle_graph(spoiled), b"length": pickle.dumps(7)})
    kept, fault = read_until_fault("oc22", tmp_path)
    assert len(kept) == 2 and "key 2: force or forces is missing; there is y, pos" in str(fault)
