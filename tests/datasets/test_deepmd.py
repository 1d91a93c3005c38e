"""DeePMD-kit's format: arrays that disagree, no cell, mixed types."""

import numpy as np

from tests.support import layouts
from tests.support.raw import is_same, read_all, read_until_fault


def test_deepmd_arrays_that_disagree(tmp_path):
    path = layouts.write_deepmd(tmp_path, layouts.make_crystals())
    np.save(path.with_name("force.npy"), np.zeros((2, 6)))
    _, fault = read_until_fault("deepmd", tmp_path)
    assert "set.000/force.npy" in str(fault) and "system1" in str(fault) and "disagree" in str(fault)
    (path.parents[1] / "type_map.raw").unlink()
    assert "names the element" in str(read_until_fault("deepmd", tmp_path)[1])


def test_deepmd_without_cell_and_of_mixed_types(tmp_path):
    known = layouts.make_molecules()[:3]
    layouts.write_deepmd(tmp_path, [s._replace(cell=np.eye(3)) for s in known])
    for name in ("set.000", "set.001"):
        (tmp_path / "system0" / name / "box.npy").unlink()
        (tmp_path / "system0" / name / "virial.npy").unlink()
    (tmp_path / "system0" / "nopbc").touch()
    found, _ = read_all("deepmd", tmp_path)
    assert all(is_same(one, two) for one, two in zip(found, known, strict=True))
    np.save(tmp_path / "system0" / "set.000" / "real_atom_types.npy", np.array([[0, 1, 1, 1, -1], [1, 1, 1, 1, 0]]))
    found, _ = read_all("deepmd", tmp_path)
    assert found[0].numbers.tolist() == [6, 1, 1, 1] and found[0].forces.shape == (4, 3)
    assert found[1].numbers.tolist() == [1, 1, 1, 1, 6]
