"""Crystals in JSON: streamed, by several routes the same, and what is wrong told with the frame."""

import json

import numpy as np

from tests.support import layouts
from tests.support.raw import is_same, read_all, read_until_fault, require_sample

SAMPLE = "mptrj_1k/MPtrj_layout_sample.DERIVED.json"


def test_json_is_streamed_and_what_was_read_is_kept(tmp_path):
    """Whatever follows the first material, it comes out: the 11 GB of MPtrj are never in memory."""
    path = layouts.write_mptrj(tmp_path, layouts.make_crystals())
    text = path.read_text()
    path.write_text(text[: text.index('"mp-1"')] + '"mp-1": {"mp-1-0-0": nonsense' + " " * 200_000)
    kept, fault = read_until_fault("mptrj", path)
    assert len(kept) == 3 and "no valid JSON" in str(fault) and "after mp-0, number 1" in str(fault)


def test_partial_occupancy_is_skipped(tmp_path):
    path = layouts.write_mptrj(tmp_path, layouts.make_crystals())
    path.write_text(path.read_text().replace('"occu": 1', '"occu": 0.5', 1))
    found, skipped = read_all("mptrj", path)
    assert len(found) == 8 and skipped == {"partial occupancy": 1}


def test_a_pair_of_positions_in_mptrj_agrees():
    """The file has them fractional and Cartesian: a lattice read the other way round would show."""
    found, _ = read_all("mptrj", require_sample(SAMPLE))
    stored = json.loads(require_sample(SAMPLE).read_text())
    frames = [frame for frames in stored.values() for frame in frames.values()]
    for one, frame in zip(found, frames, strict=True):
        np.testing.assert_allclose(one.positions, [site["xyz"] for site in frame["structure"]["sites"]], atol=1e-6)


def test_the_same_crystals_by_three_routes(tmp_path):
    """Real rows of MPtrj: their JSON, extended XYZ and Alexandria's layout made of them."""
    found, _ = read_all("mptrj", require_sample(SAMPLE))
    layouts.write_alexandria(tmp_path, found)
    layouts.write_extxyz(tmp_path, found)
    for name, raw in (("alexandria", tmp_path), ("extxyz", tmp_path)):
        again, _ = read_all(name, raw)
        assert len(again) == len(found) and all(is_same(one, two) for one, two in zip(again, found))
