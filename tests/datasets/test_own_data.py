"""Options that all readers of the user's own data share: keys, units, signs, groups, splits, isolated atoms, unread files."""

import json
import shutil
from collections import Counter
from typing import get_args

import h5py
import numpy as np
import pytest

from gnnscale.atoms import units
from gnnscale.contract.errors import BadFile
from gnnscale.data.formats import own_data
from tests.support import layouts
from tests.support.raw import OWN, is_same, load_script, read_all, read_until_fault, require_sample


def write_frames(path, *frames):
    """Write frames of (comment, rows)."""
    path.write_text("".join(f"{len(rows)}\n{comment}\n" + "\n".join(rows) + "\n" for comment, rows in frames))
    return path


WATER = ["O 0 0 0", "H 0 0 0.96", "H 0 0.9 -0.2"]
ATOM = ["H 0 0 0"]


# ---------------------------------------------------------------------------------------------------------------- units
def test_every_unit_of_the_options_has_a_factor():
    for names, factors in [
        (own_data.EnergyUnit, units.ENERGY_UNITS),
        (own_data.LengthUnit, units.LENGTH_UNITS),
        (own_data.ForceUnit, units.FORCE_UNITS),
        (own_data.StressUnit, units.STRESS_UNITS),
    ]:
        assert set(get_args(names)) == set(factors)
    assert units.FORCE_UNITS["Hartree/Bohr"] == pytest.approx(51.42206747) and pytest.approx(layouts.KBAR) == units.KBAR
    assert units.STRESS_UNITS["Hartree/Bohr^3"] == pytest.approx(29421.02648438959 * units.GPA)  # CODATA


@pytest.mark.parametrize(
    ("options", "energy", "length", "force", "stress"),
    [
        ({"energy_unit": "Hartree"}, 27.211386, 1.0, 27.211386, 1.0),
        ({"energy_unit": "Hartree", "length_unit": "Bohr"}, 27.211386, 0.52917721, 51.422067, 1.0),
        ({"energy_unit": "kcal/mol", "force_unit": "eV/Angstrom"}, 0.0433641, 1.0, 1.0, 1.0),
        ({"energy_unit": "Rydberg", "force_unit": "Hartree/Bohr"}, 13.605693, 1.0, 51.422067, 1.0),
        ({"forces_are": "gradients", "length_unit": "nm"}, 1.0, 10.0, -0.1, 1.0),
        ({"stress_unit": "GPa", "stress_positive_in": "compression"}, 1.0, 1.0, 1.0, -0.00624150907),
        ({"stress_unit": "kbar"}, 1.0, 1.0, 1.0, 0.000624150907),
    ],
)
def test_units_and_signs_of_a_file_are_converted_by_whichever_reader(options, energy, length, force, stress, tmp_path):
    known = layouts.make_crystals()[:3]
    layouts.write_extxyz(tmp_path, known)
    layouts.write_trajectory(tmp_path, known)
    for name in ("extxyz", "ase_files"):
        for mine, s in zip(read_all(name, tmp_path, **options)[0], known, strict=True):
            for field, factor in (
                ("energy", energy),
                ("forces", force),
                ("positions", length),
                ("cell", length),
                ("stress", stress),
            ):
                np.testing.assert_allclose(getattr(mine, field), factor * getattr(s, field), rtol=2e-7)


def test_six_numbers_of_a_stress_in_the_order_of_vasp(tmp_path):
    write_frames(tmp_path / "a.xyz", ('Lattice="5 0 0 0 5 0 0 0 5" energy=1 stress="1 2 3 4 5 6"', WATER))
    (ase,), _ = read_all("extxyz", tmp_path)
    (vasp,), _ = read_all("extxyz", tmp_path, stress_order="vasp")
    assert (ase.stress[1, 2], ase.stress[0, 2], ase.stress[0, 1]) == (4, 5, 6)
    assert (vasp.stress[0, 1], vasp.stress[1, 2], vasp.stress[0, 2]) == (4, 5, 6)
    assert np.isnan(read_all("extxyz", tmp_path, stress="none")[0][0].stress).all()


# ----------------------------------------------------------------------------------------------------------------- keys
@pytest.mark.parametrize(
    ("comment", "typed"),
    [
        ("REF_energy=-1.0 pbc='F F F'", "energy: REF_energy (by hand: --energy REF_energy)"),
        ("dft_Energy=-1.0 energy_unit=eV", "energy: dft_Energy (by"),
        ("energy=1.0 REF_stress='1 2 3 4 5 6' Lattice='5 0 0 0 5 0 0 0 5'", "stress: REF_stress (by"),
        ("energy=1.0 virials='1 2 3 4 5 6 7 8 9' Lattice='5 0 0 0 5 0 0 0 5'", "virial: virials (by"),
        ("energy=1.0 Properties=species:S:1:pos:R:3:dft_force:R:3", "forces: dft_force (by"),
        ("energy=1.0 Properties=species:S:1:pos:R:3:gradient:R:3", "forces: gradient (by"),
    ],
)
def test_a_label_under_another_key_is_told_with_what_to_type(comment, typed, tmp_path):
    rows = [row + " 0 0 1" if "Properties" in comment else row for row in WATER]
    write_frames(tmp_path / "a.xyz", (comment.replace("'", '"'), rows))
    _, fault = read_until_fault("extxyz", tmp_path)
    assert isinstance(fault, BadFile) and fault.hints[0].startswith(f"set the option {typed}"), fault
    option, _, key = typed.split(" (")[0].partition(": ")
    assert read_until_fault("extxyz", tmp_path, **{option: key})[1] is None
    if option != "energy":
        assert read_until_fault("extxyz", tmp_path, **{"stress" if option == "virial" else option: "none"})[1] is None


# --------------------------------------------------------------------------------------------------- groups and splits
def test_a_key_says_the_published_split(tmp_path):
    frames = [(f"energy=1 fold={fold}", WATER) for fold in ("train", "TRAIN", "val", "valid", "test")]
    write_frames(tmp_path / "a.xyz", *frames)
    found, _ = read_all("extxyz", tmp_path, split_key="fold")
    assert [s.split for s in found] == ["train", "train", "validation", "validation", "test"]
    assert {s.split for s in read_all("extxyz", tmp_path)[0]} == {None}
    assert "no folds=" in str(read_until_fault("extxyz", tmp_path, split_key="folds")[1])
    write_frames(tmp_path / "b.xyz", ("energy=1 fold=7", WATER))
    fault = read_until_fault("extxyz", tmp_path, split_key="fold")[1]
    assert "fold='7' is no split" in fault.message and "validation" in fault.hints[0]


def test_names_of_files_say_the_published_split(tmp_path):
    for name in ("train_300K", "latest", "test_600K", "my-val"):
        write_frames(tmp_path / f"{name}.xyz", ("energy=1", WATER))
    found, _ = read_all("extxyz", tmp_path, split_by_file=True)
    assert {s.label.split(".")[0]: s.split for s in found} == {
        "train_300K": "train",
        "latest": "train",
        "test_600K": "test",
        "my-val": "validation",
    }
    (tmp_path / "test_600K.xyz").unlink()
    assert {s.split for s in read_all("extxyz", tmp_path, split_by_file=True)[0]} == {None}, "nothing is for tests"


def test_groups_are_files_frames_or_values_of_a_key(tmp_path):
    for name in ("a", "b"):
        write_frames(tmp_path / f"{name}.xyz", ("energy=1 run=1", WATER), ("energy=2 run=2", WATER))
    for group, expected in (("file", 2), ("frame", 4), (None, 4), ("run", 2)):
        assert len({s.group for s in read_all("extxyz", tmp_path, group=group)[0]}) == expected
    path = layouts.write_trajectory(tmp_path, layouts.make_crystals())
    for group, expected in (("file", 1), ("frame", 9), (None, 1), ("material", 3)):
        assert len({s.group for s in read_all("ase_files", path, group=group)[0]}) == expected


# ------------------------------------------------------------------------------------------------------- isolated atoms
BOX = 'Lattice="{0} 0 0 0 {0} 0 0 0 {0}" energy=-13'


@pytest.mark.parametrize(
    ("comment", "rows", "expected"),
    [
        ("energy=-13", ATOM, True),
        (BOX.format(12.0), ATOM, True),
        (BOX.format(4.0), ATOM, False),
        (BOX.format(4.0) + " config_type=IsolatedAtom", ATOM, True),
        (BOX.format(4.0) + ' config_type="isolated_atom"', ATOM, True),
        ('Lattice="3 0 0 0 20 0 0 0 20" energy=-13', ATOM, False),
        ('Lattice="9 0 0 8 4 0 0 0 20" energy=-13', ATOM, False),  # its second vector less its first: 4.1 Angstrom
        ('Lattice="3 0 0 0 20 0 0 0 20" energy=-13 pbc="F T T"', ATOM, True),
        (BOX.format(12.0), WATER, False),
    ],
)
def test_an_isolated_atom_is_a_reference(comment, rows, expected, tmp_path):
    write_frames(tmp_path / "a.xyz", (comment, rows))
    (found,), _ = read_all("extxyz", tmp_path)
    assert found.is_reference == expected and found.energy in (-13, 1)


def test_isolated_atoms_in_a_file_of_their_own(tmp_path):
    folder = require_sample("bpa3_train")
    found, _ = read_all("extxyz", folder / "train_300K.xyz", isolated_atoms="iso_atoms.xyz")
    atoms = {int(s.numbers[0]): s.energy for s in found if s.is_reference}
    assert len(found) == 504 and atoms == pytest.approx(
        {1: -13.5872, 6: -1029.4890, 7: -1484.9815, 8: -2041.9816}, abs=1e-4
    )
    script = load_script("extxyz")
    options = script.Options(raw=str(folder), isolated_atoms="iso_atoms.xyz")
    assert len(script.input_files(options)) == len(set(script.input_files(options))) == 3
    write_frames(tmp_path / "a.xyz", ("energy=1", WATER))
    fault = read_until_fault("extxyz", tmp_path, isolated_atoms="a.xyz")[1]
    assert "of the file isolated_atoms has 3 atoms" in str(fault)
    with pytest.raises(FileNotFoundError, match=r"b\.xyz: no such file"):
        script.input_files(script.Options(raw=str(tmp_path), isolated_atoms="b.xyz"))
    write_frames(tmp_path / "a.xyz", ("energy=1 config_type=IsolatedAtom", WATER))
    assert "has 3 atoms, one was expected" in str(read_until_fault("extxyz", tmp_path)[1])


# ----------------------------------------------------------------------------------------------------- size for the planner
@pytest.mark.parametrize(
    ("name", "write"),
    [(name, layout.write) for name in OWN if name != "pyanitools" for layout in layouts.LAYOUTS[name][:3]],
)
def test_the_planner_is_told_how_many_structures_and_atoms_there_are(name, write, tmp_path):
    """The number of atoms is counted where the format tells it at once; else it is 30."""
    write(tmp_path, layouts.make_crystals())
    script = load_script(name)
    card = script.card(script.Options(raw=str(tmp_path)))
    assert card.structures == 9
    assert card.atoms_per_structure == pytest.approx(10 / 3 if write not in NO_ATOMS else 30)
    told = script.card(script.Options(raw=str(tmp_path), structures=5, atoms=7))
    assert (told.structures, told.atoms_per_structure) == (5, 7)
    assert script.card(script.Options(raw=str(tmp_path / "nowhere"))).structures == 1000


NO_ATOMS = (layouts.write_trajectory, layouts.write_ase_json)


def test_the_planner_is_told_the_size_of_real_files():
    for name, path, structures, atoms in [
        ("extxyz", "ethanol_methanol", 4993, 8.12),
        ("extxyz", "mad_1k", 1000, 29.2),
        ("pymatgen_json", "MoNbTaW", 5658, 21.0),
        ("ase_files", "oxides_pbe/oxides.db", 295, 9.9),
        ("ase_files", "oc20_relaxations/traj/random1000100.traj", 126, 30),
    ]:
        script = load_script(name)
        card = script.card(script.Options(raw=str(require_sample(path))))
        assert card.structures == structures and card.atoms_per_structure == pytest.approx(atoms, rel=0.15)


# --------------------------------------------------------------------------------------------------------- unread files
def test_files_that_are_not_read_are_counted(tmp_path):
    layouts.write_extxyz(tmp_path, layouts.make_crystals())
    (tmp_path / "notes").mkdir()
    for name in ("a.txt", "notes/b.txt", "notes/readme", ".hidden"):
        (tmp_path / name).touch()
    found, skipped = read_all("extxyz", tmp_path)
    assert len(found) == 9
    assert skipped == {"file that this dataset does not read: *.txt": 2, "file: readme": 1}
    assert not read_all("extxyz", tmp_path / "mine.extxyz")[1]


# --------------------------------------------------------------------------------------------------- mlearn's JSON lists
def test_mlearns_alloys_with_their_published_test_set_and_their_stress(tmp_path):
    for name in ("W_Elastic", "W_Surface", "W_Test", "MoTa_Test"):
        shutil.copy(require_sample(f"MoNbTaW/{name}.json"), tmp_path)
    found, _ = read_all("pymatgen_json", tmp_path)
    assert Counter(s.split for s in found) == {"train": 121 + 13, "test": 30 + 40}
    assert {"_Test.json" in s.label for s in found if s.split == "test"} == {True}
    assert not any("_Test.json" in s.label for s in found if s.split == "train")
    assert not any(s.is_reference for s in found) and min(len(s.numbers) for s in found) == 2
    strained = [s for s in found if s.label.startswith("W_Elastic")]
    pairs = [(a, b) for k, a in enumerate(strained) for b in strained[k + 1 :]]
    work, change = zip(*(strain_work(a, b) for a, b in pairs if np.abs(b.cell - a.cell).max() < 0.04))
    residual = np.subtract(work, change)
    assert np.sqrt((residual**2).mean()) < 0.03 * np.sqrt(np.square(change).mean())  # 0.5 with ASE's order of numbers


def strain_work(one, two):
    """Return the work of the mean stress from one cell to another, and the change of the energy."""
    strain = np.linalg.inv((one.cell + two.cell) / 2) @ (two.cell - one.cell)
    mean = (one.stress * np.linalg.det(one.cell) + two.stress * np.linalg.det(two.cell)) / 2
    return (mean * (strain + strain.T) / 2).sum(), two.energy - one.energy


def test_labels_beside_the_structure_and_molecules(tmp_path):
    path = tmp_path / "mine.json"
    sites = [{"species": [{"element": "H", "occu": 1}], "xyz": [0, 0, z]} for z in (0, 0.74)]
    entry = {"structure": {"sites": sites}, "virial_stress": None, "energy": -32.0, "split": "test"}
    path.write_text(json.dumps([entry]))
    (found,), _ = read_all("pymatgen_json", path, split_key="split")
    assert found.energy == -32.0 and not found.pbc.any() and found.positions[1, 2] == 0.74 and found.split == "test"
    path.write_text(path.read_text().replace('"occu": 1', '"occu": 0.5'))
    assert read_all("pymatgen_json", path)[1] == {"partial occupancy": 1}
    path.write_text('[{"energy": 1}]')
    assert "an entry with `structure` was expected; there is energy" in str(read_until_fault("pymatgen_json", path)[1])


# ---------------------------------------------------------------------------------------------------- pyanitools' HDF5
def test_ani1_by_conformation_with_what_is_of_high_energy_counted():
    path = require_sample("ani1_gdb/ani_gdb_s02.h5")
    found, skipped = read_all("pyanitools", path, limit=2, energies="atoms")
    with h5py.File(path) as file:
        groups = [file["gdb11_s02"][name] for name in ("gdb11_s02-0", "gdb11_s02-1")]
        assert len(found) == sum(len(group["energies"]) for group in groups) == 8469 + 7084
        assert skipped == {"of high energy, which ANI-1 keeps apart": sum(len(g["energiesHE"]) for g in groups)}
        assert found[8469].energy == groups[1]["energies"][0] * layouts.HARTREE
        assert np.array_equal(found[8468].positions, groups[0]["coordinates"][-1].astype(float))
    assert len({s.group for s in found}) == 2 and found[0].numbers.tolist() == [6, 6, *[1] * 6]
    assert not any(s.is_reference for s in found)


def test_ani2x_in_groups_of_equal_size_and_its_forces():
    """The energies of diatomic molecules, by distance, have the forces as slope."""
    found, _ = read_all("pyanitools", require_sample("ani2x_format"), energies="atoms")
    assert len(found) == 5706 and len({s.group for s in found}) == 10
    for formula in {s.group for s in found}:
        some = [s for s in found if s.group == formula]
        assert len({tuple(sorted(s.numbers)) for s in some}) == 1
        some.sort(key=lambda s: np.linalg.norm(s.positions[1] - s.positions[0]))
        lengths = np.array([np.linalg.norm(s.positions[1] - s.positions[0]) for s in some])
        pulls = np.array([s.forces[1] @ (s.positions[1] - s.positions[0]) / d for s, d in zip(some, lengths)])
        change, work = np.diff([s.energy for s in some]), -np.diff(lengths) * (pulls[1:] + pulls[:-1]) / 2
        short = np.diff(lengths) < 0.02
        assert (work[short] @ change[short]) / (work[short] @ work[short]) == pytest.approx(1.0, abs=0.02)


def test_gradients_of_comp6_and_symbols_of_several_molecules_in_one_group(tmp_path):
    known = layouts.make_molecules()[3:]  # NH3 and CH2O: four atoms each
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("004")
        group["species"] = np.array([layouts.list_symbols(s) for s in known], "S2")
        group["coordinates"] = [s.positions for s in known]
        group["energies"] = np.array([s.energy for s in known]) / layouts.HARTREE
        group["forces"] = -np.array([s.forces for s in known]) / layouts.HARTREE
    found, _ = read_all("pyanitools", tmp_path, forces_are="gradients")
    assert all(is_same(one, two) for one, two in zip(found, known, strict=True))
    assert len({s.group for s in found[:3]}) == len({s.group for s in found[3:]}) == 1 != len({s.group for s in found})
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["004/species"][0, 0] = b"Q"
    assert "'Q' is no element" in str(read_until_fault("pyanitools", tmp_path)[1])


# --------------------------------------------------------------------------------------------------------- DeePMD's sets
def test_the_last_set_or_the_folder_is_deepmds_test_set(tmp_path):
    layouts.write_deepmd(tmp_path, layouts.make_crystals())
    found, _ = read_all("deepmd", tmp_path, last_set="test")
    assert [s.split for s in found] == ["train", "train", "test"] * 3
    (tmp_path / "training_data").mkdir()
    for name, folder in (("system0", "training_data"), ("system1", "training_data"), ("system2", "test_data")):
        shutil.move(tmp_path / name, tmp_path / folder / name)
    found, _ = read_all("deepmd", tmp_path, split_by_file=True)
    assert [(s.group, s.split) for s in found[::3]] == [
        ("test_data/system2", "test"),
        ("training_data/system0", "train"),
        ("training_data/system1", "train"),
    ]
    assert {s.split for s in read_all("deepmd", tmp_path)[0]} == {None}


def test_deepmds_labels_may_lack_or_have_other_names(tmp_path):
    path = layouts.write_deepmd(tmp_path, layouts.make_crystals()).parent
    (path / "energy.npy").rename(path / "energy_dft.npy")
    assert "energy: energy_dft" in str(read_until_fault("deepmd", tmp_path)[1])
    found, _ = read_all("deepmd", path.parents[0], energy="none")
    assert np.isnan(found[0].energy) and np.isfinite(found[0].forces).all()
    np.save(path / "names.npy", np.array(["a", "b"], object), allow_pickle=True)
    assert "names.npy: unreadable" in str(read_until_fault("deepmd", tmp_path)[1])
