"""Energies in another unit, or of another kind, are detected before they reach a shard."""

import pytest

from gnnscale.atoms.units import ENERGY_UNITS
from gnnscale.contract.errors import BadFile
from gnnscale.data.formats.raw_files import DOWNLOAD_AGAIN
from tests.support import layouts
from tests.support.layouts import LAYOUTS
from tests.support.raw import OWN, RAW, read_all, read_until_fault


@pytest.mark.parametrize("name", [name for name in RAW if name not in OWN])
@pytest.mark.parametrize("unit", ["Hartree", "kcal/mol", "kJ/mol"])
def test_energies_in_another_unit_are_noticed(name, unit, tmp_path):
    layout = LAYOUTS[name][0]
    layout.write(tmp_path, [s._replace(energy=s.energy / ENERGY_UNITS[unit]) for s in layout.known()])
    _, fault = read_until_fault(name, tmp_path, **layout.options)
    assert (
        isinstance(fault, BadFile)
        and fault.hints == (DOWNLOAD_AGAIN,)
        and f"in {unit} it would fit" in str(fault)
        and "eV per atom" in str(fault)
    )


def test_adsorption_energies_are_told_from_total_ones(tmp_path):
    known = [s._replace(energy=s.energy - 2.5 * k) for k, s in enumerate(layouts.make_crystals(stress=False))]
    layouts.write_oc20(tmp_path, known)
    found, _ = read_all("oc20", tmp_path)  # less the reference energies, -2.5 k
    assert [s.energy for s in found] == pytest.approx([s.energy for s in layouts.make_crystals()])
    layouts.write_oc22(tmp_path, known)
    _, fault = read_until_fault("oc20", tmp_path / "data.0000.lmdb")
    assert "cannot be an energy of adsorption" in str(fault)
    layouts.write_oc22(tmp_path, [s._replace(energy=0.1) for s in known])
    for name, options in (("oc20", {"energy": "raw"}), ("oc22", {})):
        _, fault = read_until_fault(name, tmp_path / "data.0000.lmdb", **options)
        assert "cannot be a total energy" in str(fault)


@pytest.mark.parametrize(("name", "known"), [("extxyz", layouts.make_molecules), ("deepmd", layouts.make_crystals)])
def test_energies_of_ones_own_data_are_checked_if_their_kind_is_said(tmp_path, name, known):
    kind = "atoms" if name == "extxyz" else "crystals"
    {"extxyz": layouts.write_extxyz, "deepmd": layouts.write_deepmd}[name](tmp_path, known())
    assert read_until_fault(name, tmp_path, energies=kind)[1] is None
    wrong = [s._replace(energy=s.energy / ENERGY_UNITS["Hartree"]) for s in known()]
    (tmp_path / "wrong").mkdir()
    {"extxyz": layouts.write_extxyz, "deepmd": layouts.write_deepmd}[name](tmp_path / "wrong", wrong)
    assert read_until_fault(name, tmp_path / "wrong")[1] is None, "nothing is said of the kind"
    assert "in Hartree it would fit" in str(read_until_fault(name, tmp_path / "wrong", energies=kind)[1])
