"""DeePMD-kit's format: arrays that disagree, no cell, mixed types."""

import numpy as np

from tests.support import layouts
from tests.support.raw import read, same, until_fault


def test_deepmd_arrays_that_disagree(tmp_path):
    path = layouts.deepmd(tmp_path, layouts.crystals())
    np.save(path.with_name("force.npy"), np.zeros((2, 6)))
    _, fault = until_fault("deepmd", tmp_path)
    assert "set.000/force.npy" in str(fault) and "system1" in str(fault) and "disagree" in str(fault)
    (path.parents[1] / "type_map.raw").unlink()
    assert "which element" in str(until_fault("deepmd", tmp_path)[1])


def test_deepmd_without_cell_and_of_mixed_types(tmp_path):
    known = layouts.molecules()[:3]
    layouts.deepmd(tmp_path, [s._replace(cell=np.eye(3)) for s in known])
    for name in ("set.000", "set.001"):
        (tmp_path / "system0" / name / "box.npy").unlink()
        (tmp_path / "system0" / name / "virial.npy").unlink()
    (tmp_path / "system0" / "nopbc").touch()
    found, _ = read("deepmd", tmp_path)
    assert all(same(one, two) for one, two in zip(found, known, strict=True))
    np.save(tmp_path / "system0" / "set.000" / "real_atom_types.npy", np.array([[0, 1, 1, 1, -1], [1, 1, 1, 1, 0]]))
    found, _ = read("deepmd", tmp_path)
    assert found[0].numbers.tolist() == [6, 1, 1, 1] and found[0].forces.shape == (4, 3)
    assert found[1].numbers.tolist() == [1, 1, 1, 1, 6]
