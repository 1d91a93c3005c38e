"""Published HDF5 files: what is missing or disagrees, and the layouts of ANI-1x, QM7-X and SPICE."""

import h5py
import pytest

from gnnscale.contract.errors import BadFile
from gnnscale.data.formats.raw_files import DOWNLOAD_AGAIN
from tests.support.layouts import LAYOUTS
from tests.support.raw import read_until_fault, require_sample

MISSING = {
    "ani1x": ("A/wb97x_dz.forces", "wb97x_dz.forces"),
    "spice": ("C=O/dft_total_gradient", "dft_total_gradient"),
    "qm7x": ("2/Geom-m2-i1-c1-2/totFOR", "totFOR"),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_key_and_another_number_of_atoms(name, tmp_path):
    layout = LAYOUTS[name][0]
    path = layout.write(tmp_path, layout.known())
    place, key = MISSING[name]
    with h5py.File(path, "a") as file:
        stored = file[place][()]
        del file[place]
    kept, fault = read_until_fault(name, tmp_path)
    assert isinstance(fault, BadFile) and fault.hints == (DOWNLOAD_AGAIN,)
    assert all(word in fault.message for word in (path.name, key, place.split("/")[0]))
    assert "there is " in str(fault) and len(kept) % 3 == (1 if name == "qm7x" else 0)
    with h5py.File(path, "a") as file:
        file[place] = stored[..., :-1, :]
    _, fault = read_until_fault(name, tmp_path)
    assert isinstance(fault, BadFile) and fault.hints == (DOWNLOAD_AGAIN,)
    assert "disagrees" in str(fault)


def test_placeholder_labels_in_qm7xs_layout_are_not_taken_for_real():
    """The file's energies are GFN1-xTB's, of valence electrons: no total energies of PBE0."""
    _, fault = read_until_fault("qm7x", require_sample("qm7x_geometries"))
    assert "Geom-m1-i1-c1-1: -37.592 eV per atom cannot be a total energy" in str(fault)
