"""Files that ASE reads: equal to ASE's own reading and to other readers; databases are not touched; pickles are refused."""

import gzip
import pickle
import shutil
import sqlite3
import zipfile
from typing import get_args

import ase.db
import ase.io
import numpy as np
import pytest
from ase.io.formats import ioformats

from tests.support import layouts
from tests.support.raw import is_same, load_script, read_all, read_until_fault, require_sample

RUN = "parse-vasp-with-magmoms"
ORCA = """
Number of atoms                         ...      2

CARTESIAN COORDINATES (ANGSTROEM)
---------------------------------
  H      0.000000    0.000000    0.000000
  F      0.000000    0.000000    0.920000

FINAL SINGLE POINT ENERGY      -100.400000000000

                         ORCA SCF GRADIENT CALCULATION

CARTESIAN GRADIENT
------------------

   1   H   :    0.000000000    0.000000000    0.010000000
   2   F   :    0.000000000    0.000000000   -0.010000000

                             ****ORCA TERMINATED NORMALLY****
"""


def test_a_trajectory_is_read_as_the_extended_xyz_of_it(tmp_path):
    path = require_sample("oc20_relaxations/traj/random1000100.traj")
    ase.io.write(tmp_path / "a.xyz", ase.io.read(path, ":40"), format="extxyz")
    direct, _ = read_all("ase_files", path, limit=40)
    other, _ = read_all("extxyz", tmp_path / "a.xyz")
    assert len(direct) == len(other) == 40 and {s.group for s in direct} == {"random1000100.traj"}
    for one, two in zip(direct, other):
        assert np.abs(one.positions - two.positions).max() < 1e-8 and np.array_equal(one.numbers, two.numbers)
        assert (
            one.energy == two.energy and np.array_equal(one.forces, two.forces) and np.array_equal(one.cell, two.cell)
        )
    energies, _ = read_all("ase_files", path, limit=1, energy="free_energy")
    assert energies[0].energy == ase.io.read(path, 0).calc.results["free_energy"] != direct[0].energy


@pytest.mark.parametrize(
    "name", ["mptrj_1k/10_mptraj_systems.db", "mptrj_1k/10_thin_mp_traj_systems.db", "oxides_pbe/oxides.db"]
)
def test_a_database_is_read_as_ase_reads_it_and_left_as_it_was(name, tmp_path):
    path = shutil.copy(require_sample(name), tmp_path / "a.db")
    before = path.read_bytes()
    found, _ = read_all("ase_files", path)
    rows = list(ase.db.connect(require_sample(name)).select())
    assert len(found) == len(rows)
    for one, row in zip(found, rows):
        assert one.energy == row.energy and np.array_equal(one.forces, row.forces) and np.array_equal(one.pbc, row.pbc)
        assert np.array_equal(one.positions, row.positions) and np.array_equal(one.cell, row.cell)
        assert np.isnan(one.stress).all() if "stress" not in row else one.stress[1, 2] == row.stress[3]
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.db"]


def test_rows_are_equal_through_all_three_databases(tmp_path):
    known = layouts.make_crystals()
    layouts.write_database(tmp_path, known)
    layouts.write_ase_json(tmp_path, known)
    layouts.write_aselmdb(tmp_path, known)
    found, _ = read_all("ase_files", tmp_path)
    assert len(found) == 27 and all(is_same(one, two) for one, two in zip(found, known * 3))


def test_keys_beside_the_labels_group_and_split(tmp_path):
    found, _ = read_all(
        "ase_files",
        require_sample("mptrj_1k/10_thin_mp_traj_systems.db"),
        group="mp_id",
        energy="corrected_total_energy",
    )
    assert {s.group for s in found} == {"mp-1040430", "mp-1020019"} or len({s.group for s in found}) == 2
    with ase.db.connect(tmp_path / "a.db") as database:
        for image, split in zip(layouts.to_images(layouts.make_crystals()[:3]), ("Train", "val", "testing")):
            database.write(image, key_value_pairs={"fold": split})
    assert [s.split for s in read_all("ase_files", tmp_path, split_key="fold")[0]] == ["train", "validation", "test"]
    assert "'m0' is no split" in str(read_until_fault("ase_files", write_trajectory(tmp_path), split_key="material")[1])


def write_trajectory(folder):
    return layouts.write_trajectory(folder, layouts.make_crystals())


def test_a_table_of_another_program_is_no_database_of_ase(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE runs (id INTEGER)")
    before = (tmp_path / "other.db").read_bytes()
    assert "no database of ASE" in str(read_until_fault("ase_files", tmp_path)[1])
    assert (tmp_path / "other.db").read_bytes() == before


# ---------------------------------------------------------------------------------------------------------------- VASP
def test_a_run_of_vasp_is_read_as_ase_reads_it_from_zip_and_outcar(tmp_path):
    archive = require_sample(f"vasp_raw/{RUN}.zip")
    with zipfile.ZipFile(archive) as file:
        for name in ("vasprun.xml", "OUTCAR"):
            (tmp_path / name).write_bytes(file.read(f"{RUN}/{name}"))
    (mine,), skipped = read_all("ase_files", archive)
    assert mine.group == f"{RUN}.zip {RUN}/vasprun.xml" and not skipped
    other = ase.io.read(tmp_path / "vasprun.xml")
    assert mine.energy == other.get_potential_energy() and np.array_equal(mine.forces, other.get_forces())
    np.testing.assert_allclose(mine.stress, other.get_stress(voigt=False), atol=1e-9)
    (printed,), _ = read_all("ase_files", tmp_path / "OUTCAR")
    for field, digits in (("energy", 1e-7), ("forces", 2e-6), ("stress", 1e-7), ("positions", 2e-5)):
        np.testing.assert_allclose(getattr(printed, field), getattr(mine, field), atol=digits)


def test_an_outcar_beside_a_vasprun_has_the_same_steps_and_is_counted(tmp_path):
    write_vasprun(tmp_path / "vasprun.xml", layouts.make_crystals()[:2])
    (tmp_path / "OUTCAR").write_text(" vasp.6.3.0\n")
    found, skipped = read_all("ase_files", tmp_path)
    assert len(found) == 2 and skipped == {"file: OUTCAR": 1}
    (tmp_path / "vasprun.xml.gz").write_bytes(gzip.compress((tmp_path / "vasprun.xml").read_bytes()))
    assert len(read_all("ase_files", tmp_path)[0]) == 4
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        archive.write(tmp_path / "vasprun.xml", "run/vasprun.xml")
        archive.write(tmp_path / "OUTCAR", "run/OUTCAR")
    assert len(read_all("ase_files", tmp_path / "both.zip")[0]) == 2


def write_vasprun(path, steps):
    """Write a relaxation under pressure as VASP does, where energy/e_0_energy is wrong."""

    def rows(name, values):
        lines = "".join(f"<v>{' '.join(map(repr, row))}</v>\n" for row in np.asarray(values).tolist())
        return f'<varray name="{name}">{lines}</varray>'

    def step(s):
        s = s._replace(energy=float(s.energy))
        fractional = s.positions @ np.linalg.inv(s.cell)
        work = float(20.0 * layouts.KBAR * np.linalg.det(s.cell))
        inner = f'<energy><i name="e_fr_energy">{s.energy - 0.1!r}</i><i name="e_0_energy">{s.energy!r}</i></energy>'
        outer = f'<energy><i name="e_fr_energy">{s.energy - 0.1 + work!r}</i><i name="e_0_energy">9.0</i></energy>'
        geometry = f"<structure><crystal>{rows('basis', s.cell)}</crystal>{rows('positions', fractional)}</structure>"
        labels = rows("forces", s.forces) + rows("stress", -s.stress / layouts.KBAR)
        return f"<calculation><scstep>{inner}</scstep>{geometry}{labels}{outer}</calculation>\n"

    atoms = "".join(f"<rc><c>{symbol} </c><c>1</c></rc>" for symbol in layouts.list_symbols(steps[0]))
    head = f'<atominfo><array name="atoms"><set>{atoms}</set></array></atominfo>'
    first = f"<crystal>{rows('basis', steps[0].cell)}</crystal>{rows('positions', steps[0].positions)}"
    initial = f"<structure name='initialpos'>{first}</structure>"
    kpoints = f"<kpoints>{rows('kpointlist', [[0.0] * 3])}{rows('weights', [[1.0]])}</kpoints>"
    parameters = '<parameters><i name="PSTRESS">20.0</i></parameters>'
    path.write_text(
        f'<?xml version="1.0"?>\n<modeling>{kpoints}{parameters}{head}{initial}{"".join(map(step, steps))}</modeling>'
    )


def test_all_steps_of_a_relaxation_are_read_and_the_one_in_which_it_was_cut_is_counted(tmp_path):
    known, path = layouts.make_crystals()[:3], tmp_path / "vasprun.xml"
    write_vasprun(path, known)
    found, skipped = read_all("ase_files", path)
    assert len(found) == 3 and not skipped and all(is_same(one, two) for one, two in zip(found, known))
    for mine, other in zip(found, ase.io.iread(path)):
        assert mine.energy == pytest.approx(other.get_potential_energy(), abs=1e-5)  # its kbar is of CODATA 2014
    (piece,) = load_script("ase_files").pieces(load_script("ase_files").Options(raw=str(path)))
    assert piece.structures == 3
    path.write_text(path.read_text()[:-900])
    found, skipped = read_all("ase_files", path)
    assert len(found) == 2 and skipped == {"the step at which a run of VASP was cut": 1}
    path.write_text("<?xml version='1.0'?><other/>")
    assert "none of VASP" in str(read_until_fault("ase_files", path)[1])


# ------------------------------------------------------------------------------------------------- formats by their name
@pytest.mark.filterwarnings("ignore:Geometry optimization")
def test_outputs_of_other_programs_are_read_by_the_name_of_their_format(tmp_path):
    (tmp_path / "hf.out").write_text(ORCA)
    (found,), _ = read_all("ase_files", tmp_path, format="orca-output", files="*.out")
    assert found.energy == pytest.approx(-100.4 * layouts.HARTREE, rel=1e-6) and found.numbers.tolist() == [1, 9]
    assert found.forces[0, 2] == pytest.approx(-0.01 * layouts.HARTREE / layouts.BOHR, rel=1e-6)
    fault = read_until_fault("ase_files", tmp_path / "hf.out")[1]
    assert "option format" in "".join(fault.hints)
    names = get_args(get_args(load_script("ase_files").Options.model_fields["format"].annotation)[0])
    assert len(names) > 5 and all(ioformats[name].can_read and "pickle" not in name for name in names)


class Bomb:
    """An object whose pickle runs a function when it is read."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_pickles_are_refused(tmp_path):
    for head in (b"", b"PickleTrajectory"):
        (tmp_path / "old.traj").write_bytes(head + pickle.dumps(Bomb(), 4))
        fault = read_until_fault("ase_files", tmp_path)[1]
        assert "execute anything" in "".join(fault.hints) and "old.traj" in str(fault)
