"""HydraGNN's files: structures written in its layout are read back, in pieces of any size."""

import shutil

import numpy as np
import pytest

from gnnscale.contract import datasets
from gnnscale.contract.errors import BadFile
from gnnscale.data.formats import hydragnn
from tests.gnnscale.data.storage.test_adios import random_structures
from tests.support import hydragnn_layout as layout

SCRIPT = datasets.load_script("hydragnn")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return (folder, split -> structures); molecules of the third split have equal size, so no dimension is ragged."""
    folder = tmp_path_factory.mktemp("hydragnn")
    made = random_structures(40)
    made = [s._replace(energy=float(np.float32(k)), forces=np.ones_like(s.forces) * k) for k, s in enumerate(made)]
    equal = [s for s in random_structures(200, 1) if len(s.numbers) == 3][:5]
    splits = {"trainset": made[:25], "valset": made[25:], "testset": equal}
    layout.write_bp(folder / "mine.bp", {k: [layout.make_graph(s, 3.0) for s in v] for k, v in splits.items()})
    return folder, splits


def read(folder, **options):
    options = SCRIPT.Options(raw=str(folder), **options)
    return [(p, s) for p in SCRIPT.pieces(options) for s in SCRIPT.structures(options, p, lambda reason: None)]


def same(one, s):
    f32 = np.float32
    assert (one.numbers == s.numbers).all() and (one.pbc == s.pbc).all()
    np.testing.assert_array_equal(one.positions, s.positions.astype(f32))
    np.testing.assert_array_equal(one.forces, s.forces.astype(f32))
    np.testing.assert_array_equal(one.cell, s.cell.astype(f32) if s.pbc.any() else np.zeros((3, 3)))
    np.testing.assert_array_equal(one.energy, f32(s.energy))
    assert np.isnan(one.stress).all()


@pytest.mark.parametrize("rows", [1024, 7, 1])
def test_what_was_written_is_read(written, rows, monkeypatch):
    monkeypatch.setattr(hydragnn, "ROWS_PER_PIECE", rows)
    folder, splits = written
    found = read(folder)
    expected = [(split, s) for split, structures in splits.items() for s in structures]
    assert len(found) == len(expected)
    for (piece, one), (split, s) in zip(found, expected):
        same(one, s)
        assert one.split == hydragnn.SPLITS[split] == hydragnn.SPLITS[piece.key]
        assert piece.name.startswith(f"mine.bp: {split} ")


def test_other_units_limits_and_splits(written):
    folder, splits = written
    found = read(folder / "mine.bp", limit=2, energy_unit="meV", split="formula")
    assert len(found) == 6 and {s.split for _, s in found} == {None}
    for (_, one), s in zip(found, [s for structures in splits.values() for s in structures[:2]]):
        np.testing.assert_allclose(one.energy, s.energy / 1000, rtol=1e-6)
        np.testing.assert_allclose(one.forces, s.forces / 1000, rtol=1e-6)


def test_features_alone_will_do(tmp_path):
    """Older files have atomic numbers and forces in `x` only, and no cell for molecules."""
    made = [s._replace(pbc=s.pbc & False) for s in random_structures(9)]
    keys = ("x", "pos", "energy")
    layout.write_bp(tmp_path / "old.bp", {"trainset": [{k: layout.make_graph(s)[k] for k in keys} for s in made]})
    for (_, one), s in zip(read(tmp_path), made):
        same(one, s)
    layout.write_bp(
        tmp_path / "bare.bp",
        {"trainset": [{"x": g["x"][:, :4]} | {k: g[k] for k in keys[1:]} for g in map(layout.make_graph, made)]},
    )
    assert all(np.isnan(s.forces).all() for _, s in read(tmp_path / "bare.bp"))


def test_what_is_wrong_is_told(written, tmp_path):
    with pytest.raises(FileNotFoundError, match="AdiosWriter"):
        read(tmp_path)
    graphs = [layout.make_graph(s) for s in random_structures(3)]
    layout.write_bp(tmp_path / "a.bp", {"other": graphs})
    with pytest.raises(BadFile, match=r"a\.bp.*no trainset"):
        read(tmp_path / "a.bp")
    for graph in graphs:
        graph.pop("energy")
    layout.write_bp(tmp_path / "b.bp", {"trainset": graphs})
    with pytest.raises(BadFile, match=r"b\.bp: trainset: no energy; there is .*forces, .*pos"):
        read(tmp_path / "b.bp")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("file", "share"), [("data.0", 0.9), ("data.0", 0.0), ("md.0", 0.5), ("md.idx", 0.5)])
def test_a_truncated_file_is_told_and_not_waited_for(written, tmp_path, file, share):
    shutil.copytree(written[0], tmp_path / "cut")
    path = tmp_path / "cut" / "mine.bp" / file
    with path.open("r+b") as cut:
        cut.truncate(int(path.stat().st_size * share))
    with pytest.raises(BadFile, match=r"mine\.bp"):
        read(tmp_path / "cut")
