"""Every script in datasets/: its card, its light import, and that what it reads is what was published."""

import itertools
import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
from pydantic import ValidationError

from gnnscale import convert
from gnnscale.data import extxyz, lmdbs, splits
from gnnscale.data.published import BadRaw, Place
from gnnscale.data.units import ENERGY
from gnnscale.files import BadFile
from gnnscale.specs import DatasetCard, Split
from tests import layouts
from tests.corpus import ENV, ROOT
from tests.layouts import CASES, LAYOUTS

SCRIPTS = sorted(path.stem for path in (ROOT / "datasets").glob("*.py"))
RAW = [name for name in SCRIPTS if name != "generated"]  # which has its own tests, and reads nothing
SHARED = Path(os.environ.get("GNNSCALE_SHARED", ROOT.parent / "shared")) / "data"
HEAVY = {"ase", "numpy", "scipy", "torch", "h5py", "lmdb", "ijson", "orjson", "tblite", "vesin", "adios2"}


@cache
def script(name):
    return convert.load_script(name)


def read(name, raw, **options):
    """(structures, what was skipped)"""
    skipped = Counter()
    made = script(name).Options(raw=str(raw), **options)
    return list(script(name).structures(made, lambda reason: skipped.update([reason]))), skipped


def until_fault(name, raw, **options):
    """(structures before the fault, the fault or None). Nothing but BadFile and ValueError may come out."""
    kept = []
    try:
        options = script(name).Options(raw=str(raw), **options)
        for structure in script(name).structures(options, lambda reason: None):
            kept.append(structure)
    except (BadFile, ValueError) as error:
        return kept, error
    return kept, None


def same(one, two) -> bool:
    for field in ("numbers", "positions", "cell", "pbc", "energy", "forces", "stress"):
        a, b = np.asarray(getattr(one, field)), np.asarray(getattr(two, field))
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-11, atol=1e-11, equal_nan=a.dtype.kind == "f"):
            return False
    return True


# ------------------------------------------------------------------------------------------------------- each script
def test_each_script_has_a_layout_that_tests_it():
    assert set(LAYOUTS) == set(RAW)


@pytest.mark.parametrize("name", RAW)
def test_cards_and_options_are_whole(name):
    options = script(name).Options(raw="somewhere")
    card = script(name).card(options)
    assert isinstance(card, DatasetCard) and card == script(name).card(options)
    assert card.structures > 0 and card.atoms_per_structure > 1 and 0 < card.seconds_per_structure < 0.1
    assert card.title and card.theory and card.citation and card.licence and card.mirrors is None
    if name not in ("extxyz", "deepmd"):  # those are of the user, who says so
        assert "10." in card.citation and card.structures > 100_000
        fewer = script(name).card(script(name).Options(raw="somewhere", limit=2))
        assert fewer.structures < card.structures
    for field, information in script(name).Options.model_fields.items():
        assert information.description and len(information.description) > 15, f"{name}.{field} has no description"
    with pytest.raises(ValidationError):
        script(name).Options(raw="somewhere", limit=0)
    with pytest.raises(ValidationError):
        script(name).Options()


def test_importing_all_of_them_is_light():
    code = (
        "import importlib.util, sys\n"
        f"for path in {[str(ROOT / 'datasets' / f'{name}.py') for name in RAW]!r}:\n"
        "    spec = importlib.util.spec_from_file_location('script', path)\n"
        "    module = sys.modules['script'] = importlib.util.module_from_spec(spec)\n"
        "    spec.loader.exec_module(module)\n"
        "    module.card(module.Options(raw='nowhere'))\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | ENV, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", RAW)
def test_what_is_not_there_is_told_with_what_to_download(name, tmp_path):
    for raw in (tmp_path / "nowhere", tmp_path):
        options = script(name).Options(raw=str(raw))
        with pytest.raises(FileNotFoundError, match=r"download|give the path") as told:
            script(name).inputs(options)
        assert str(raw) in str(told.value)
        with pytest.raises(FileNotFoundError):
            list(script(name).structures(options, lambda reason: None))


# ------------------------------------------------------------------------------------------------- published layouts
@pytest.mark.parametrize(("name", "number"), CASES)
def test_what_was_written_is_read(name, number, tmp_path):
    layout = LAYOUTS[name][number]
    known = layout.known()
    spoilable = layout.write(tmp_path, known)
    found, skipped = read(name, tmp_path, **layout.options)
    assert len(found) == len(known) and not skipped
    for k, (one, two) in enumerate(zip(found, known)):
        assert same(one, two), f"{name}: structure {k}: {one} is not {two}"
        convert.check(one, k)
        assert isinstance(one.energy, float) and one.pbc.dtype == bool and one.numbers.dtype.kind == "i"
        assert one.label and str(tmp_path) not in one.label + one.group
    assert len({s.group for s in found}) == layout.groups
    assert len({s.label for s in found}) == len(found)
    if layout.groups == 3:
        assert all(len({s.group for s in found[k : k + 3]}) == 1 for k in (0, 3, 6))
    inputs = script(name).inputs(script(name).Options(raw=str(tmp_path), **layout.options))
    assert spoilable in inputs and all(path.is_file() for path in inputs) and len(inputs) == len(set(inputs))
    one, _ = read(name, spoilable if name != "deepmd" else spoilable.parents[1], limit=1, **layout.options)
    assert 1 <= len(one) <= 3 and same(one[0], known[3 if name == "deepmd" else 0])


@pytest.mark.parametrize(("name", "number"), CASES)
def test_truncated_files_are_told_with_name_and_position(name, number, tmp_path):
    layout = LAYOUTS[name][number]
    known = layout.known()
    path = layout.write(tmp_path, known)
    whole, before = path.read_bytes(), read(name, tmp_path, **layout.options)[0]
    for share in (0.0, 0.003, 0.3, 0.55, 0.8, 0.97):
        cut = int(share * len(whole))
        while layout.write is layouts.extxyz and whole[cut - 1 : cut] == b"\n":  # a whole frame may end there
            cut -= 1
        path.write_bytes(whole[:cut])
        kept, fault = until_fault(name, tmp_path, **layout.options)
        if layout.write is layouts.extxyz and cut == 0:
            assert not kept
            continue
        assert isinstance(fault, BadFile), f"{name}: cut at {share} of {len(whole)} bytes went unnoticed"
        assert path.name.split(".")[0] in str(fault) and str(tmp_path) in str(fault) and len(str(fault)) < 600
        assert len(kept) < len(before) and all(same(a, b) for a, b in zip(kept, before))
    path.write_bytes(b"\x00" * 5000)
    assert isinstance(until_fault(name, tmp_path, **layout.options)[1], BadFile)


@pytest.mark.parametrize(("name", "number"), [c for c in CASES if LAYOUTS[c[0]][c[1]].write is not layouts.oc22])
def test_flipped_bytes_leak_no_other_error(name, number, tmp_path):
    """What carries a checksum is found; of the rest no more is asked than an error that can be understood."""
    layout = LAYOUTS[name][number]
    path = layout.write(tmp_path, layout.known())
    whole, found, tries = path.read_bytes(), 0, 12
    values = [k for k in range(len(whole)) if whole[k : k + 1] != b"\x00"]
    if layout.write is layouts.aselmdb:  # LMDB's own pages have no checksum, and it trusts them
        start = whole.index(b"\x78\x9c", 8000)
        values = [k for k in values if k > start + 2 and whole[k - 1 : k + 2] != b"\x78\x9c"]
    rng = random.Random(1)
    for _ in range(tries):
        spoiled = bytearray(whole)
        for _ in range(3):
            spoiled[rng.choice(values)] ^= 1 << rng.randrange(8)
        path.write_bytes(spoiled)
        _, fault = until_fault(name, tmp_path, **layout.options)
        assert fault is None or path.name.split(".")[0] in str(fault)
        found += fault is not None
    if path.suffix in (".xz", ".bz2"):
        assert found == tries


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
    kept, fault = until_fault(name, tmp_path)
    assert isinstance(fault, BadRaw) and all(word in str(fault) for word in (path.name, key, place.split("/")[0]))
    assert "there is " in str(fault) and fault.hint and len(kept) % 3 == (1 if name == "qm7x" else 0)
    with h5py.File(path, "a") as file:
        file[place] = stored[..., :-1, :]
    _, fault = until_fault(name, tmp_path)
    assert isinstance(fault, BadRaw) and "disagrees" in str(fault)


@pytest.mark.parametrize(
    ("name", "before", "after", "words"),
    [
        ("mptrj", '"force"', '"farce"', ["mp-0 mp-0-0-0", "force is missing", "farce"]),
        ("mptrj", '"element": "Ti"', '"element": "Tj"', ["'Tj' is no element"]),
        ("mptrj", '"matrix": [[', '"matrix": [["x", ', ["mp-0 mp-0-0-0", "unreadable"]),
        ("extxyz", " energy=", " energie=", ["frame 0, line 1", "no energy=", "energie"]),
        ("extxyz", "forces:R:3", "REF_forces:R:3", ["frame 0", "no column 'forces'", "REF_forces"]),
        ("extxyz", "\nO ", "\nQ ", ["frame 0", "'Q' is no element"]),
        ("extxyz", "\nO ", "\nO 1.0 ", ["frame 0, line 4", "8 columns, 7 expected"]),
        ("extxyz", "\nO ", "\nO 1.2.3 ", ["frame 0, line 4"]),
        ("extxyz", 'Lattice="', 'Lattice="0.1 ', ["Lattice", "9 finite numbers"]),
        ("extxyz", 'pbc="T T T"', 'pbc="T T"', ["pbc"]),
        ("extxyz", "forces:R:3", "forces:R:x", ["name:type:number"]),
    ],
)
def test_a_text_that_is_wrong_in_one_place(name, before, after, words, tmp_path):
    layout = LAYOUTS[name][0]
    path = layout.write(tmp_path, layout.known())
    path.write_text(path.read_text().replace(before, after, 1))
    _, fault = until_fault(name, tmp_path, **layout.options)
    assert isinstance(fault, BadRaw)
    assert all(word in str(fault) for word in [str(path), *words]), str(fault)


def test_json_is_streamed_and_what_was_read_is_kept(tmp_path):
    """Whatever follows the first material, it comes out: the 11 GB of MPtrj are never in memory."""
    path = layouts.mptrj(tmp_path, layouts.crystals())
    text = path.read_text()
    path.write_text(text[: text.index('"mp-1"')] + '"mp-1": {"mp-1-0-0": nonsense' + " " * 200_000)
    kept, fault = until_fault("mptrj", path)
    assert len(kept) == 3 and "no valid JSON" in str(fault) and "after mp-0, number 1" in str(fault)


def test_a_second_frame_is_told_with_its_line(tmp_path):
    path = layouts.extxyz(tmp_path, layouts.crystals())
    lines = path.read_text().splitlines(keepends=True)
    lines[7] = lines[7].replace(".", "o", 1)  # frame 1 has lines 6 to 10
    path.write_text("".join(lines))
    kept, fault = until_fault("extxyz", path)
    assert len(kept) == 1 and "frame 1, line 8" in str(fault) and "is not a number" in str(fault)


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


# --------------------------------------------------------------------------------------------- units that are implausible
@pytest.mark.parametrize("name", [name for name in RAW if name not in ("extxyz", "deepmd")])
@pytest.mark.parametrize("unit", ["Hartree", "kcal/mol", "kJ/mol"])
def test_energies_in_another_unit_are_noticed(name, unit, tmp_path):
    layout = LAYOUTS[name][0]
    layout.write(tmp_path, [s._replace(energy=s.energy / ENERGY[unit]) for s in layout.known()])
    _, fault = until_fault(name, tmp_path, **layout.options)
    assert isinstance(fault, BadRaw) and f"in {unit} it would fit" in str(fault) and "eV per atom" in str(fault)


def test_adsorption_energies_are_told_from_total_ones(tmp_path):
    known = [s._replace(energy=s.energy - 2.5 * k) for k, s in enumerate(layouts.crystals(stress=False))]
    layouts.oc20(tmp_path, known)
    found, _ = read("oc20", tmp_path)  # less the reference energies, -2.5 k
    assert [s.energy for s in found] == pytest.approx([s.energy for s in layouts.crystals()])
    layouts.oc22(tmp_path, known)
    _, fault = until_fault("oc20", tmp_path / "data.0000.lmdb")
    assert "cannot be an energy of adsorption" in str(fault)
    layouts.oc22(tmp_path, [s._replace(energy=0.1) for s in known])
    for name, options in (("oc20", {"energy": "raw"}), ("oc22", {})):
        _, fault = until_fault(name, tmp_path / "data.0000.lmdb", **options)
        assert "cannot be a total energy" in str(fault)


def test_extended_xyz_in_other_units_and_keys(tmp_path):
    known = layouts.crystals()[0]
    volume = np.linalg.det(known.cell)

    def extra(k, s):
        six = (-s.stress * volume / ENERGY["kcal/mol"])[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        words = " ".join(map(repr, six.tolist()))
        return f'REF_energy={s.energy / ENERGY["kcal/mol"]!r} REF_virial="_JSON [{words.replace(" ", ", ")}]"'

    text = layouts.extended([known._replace(forces=known.forces / ENERGY["kcal/mol"])], extra)
    (tmp_path / "a.xyz").write_text(text.replace("forces:R:3", "REF_forces:R:3"))
    keys = {"energy": "REF_energy", "forces": "REF_forces", "virial": "REF_virial", "energy_unit": "kcal/mol"}
    (found,), _ = read("extxyz", tmp_path, **keys)
    assert same(found, known)


def test_labels_that_a_frame_lacks_are_nan(tmp_path):
    lines = ["2", 'Properties=species:S:1:pos:R:3 energy=-32.0 pbc="F F F"', "H 0 0 0", "H 0 0 0.74", ""]
    (tmp_path / "a.xyz").write_text("\n".join([*lines, "1", "energy=-13.6", "H 0 0 0", ""]))
    (found,), skipped = read("extxyz", tmp_path)
    assert found.energy == -32.0 and np.isnan(found.forces).all() and np.isnan(found.stress).all()
    assert skipped == {"isolated atom: a reference, not a structure": 1}


# ---------------------------------------------------------------------------------------------------- what is left out
def test_what_is_left_out_is_counted(tmp_path):
    folders = {}
    for name in ("ani1x", "spice", "qm7x", "qm9", "omol25"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        LAYOUTS[name][0].write(folders[name], LAYOUTS[name][0].known())
    found, skipped = read("ani1x", folders["ani1x"], level="ccsd(t)_cbs")
    assert len(found) == 3 and skipped == {"no energy at ccsd(t)_cbs": 6} and np.isnan(found[0].forces).all()
    found, skipped = read("spice", folders["spice"], charge="neutral")
    assert len(found) == 3 and skipped == {"charged": 6}
    (folders["qm7x"] / "DupMols.dat").write_text("Geom-m2-i1-c1-opt\n")
    found, skipped = read("qm7x", folders["qm7x"])
    assert {s.group for s in found} == {"1", "10"} and skipped == {"listed as duplicate in DupMols.dat": 3}
    (folders["qm9"] / "uncharacterized.txt").write_text("Table\n===\n 4 CCO C 1.0\n9 C C 2.0\n")
    found, skipped = read("qm9", folders["qm9"])
    assert len(found) == 7 and skipped.total() == 2 and "dsgdb9nsd_000004" not in {s.group for s in found}
    found, skipped = read("omol25", folders["omol25"], charge="neutral")
    assert len(found) == 4 and skipped == {"charged or open-shell": 5}


def test_lists_of_what_to_leave_out_are_asked_for(tmp_path):
    for name, gone, option in (
        ("qm7x", "DupMols.dat", "duplicates"),
        ("qm9", "uncharacterized.txt", "uncharacterized"),
    ):
        (tmp_path / name).mkdir()
        LAYOUTS[name][0].write(tmp_path / name, LAYOUTS[name][0].known())
        (tmp_path / name / gone).unlink()
        with pytest.raises(FileNotFoundError, match=f"{gone}: missing; download.*{option}: keep"):
            read(name, tmp_path / name)
        assert len(read(name, tmp_path / name, **{option: "keep"})[0]) == 9


def test_energies_and_forces_are_of_one_level(tmp_path):
    known = layouts.molecules()
    layouts.qm7x(tmp_path, known)
    found, _ = read("qm7x", tmp_path, level="PBE0")
    np.testing.assert_allclose(found[0].forces, known[0].forces + 0.5)
    assert found[0].energy == pytest.approx(known[0].energy + 0.25)
    layouts.mptrj(tmp_path, layouts.crystals())
    found, _ = read("mptrj", tmp_path, energy="corrected")
    assert found[0].energy == pytest.approx(layouts.crystals()[0].energy - 3.0)


def test_partial_occupancy_is_skipped(tmp_path):
    path = layouts.mptrj(tmp_path, layouts.crystals())
    path.write_text(path.read_text().replace('"occu": 1', '"occu": 0.5', 1))
    found, skipped = read("mptrj", path)
    assert len(found) == 8 and skipped == {"partial occupancy": 1}


# ------------------------------------------------------------------------------------------------------------- pickles
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
        (layouts.pickled({"pos": inside}), "system"),
        (pickle.dumps(Evil(eval, "1+1")), "builtins.eval"),
        (pickle.dumps(Evil(torch.storage._load_from_bytes, plain)), "system"),
        (pickle.dumps(Evil(torch.load, str(mark))), "torch.serialization.load"),
        (pickle.dumps(np.array([inside], dtype=object)), "system"),
        (b"cgnnscale.files\nwrite\n.", "gnnscale.files.write"),
    ):
        with pytest.raises(BadRaw, match="could execute anything") as told:
            lmdbs.unpickled(Place(tmp_path / "data.lmdb"), graph)
        assert word in str(told.value)
    assert not mark.exists()


def test_a_tensor_cannot_reach_beyond_its_memory():
    import torch

    stored = lmdbs.Storage(np.arange(6.0))
    assert lmdbs.tensor(stored, 1, (2, 2), (3, 1)).tolist() == [[1, 2], [4, 5]]
    for offset, size, stride in ((0, (7,), (1,)), (1, (2, 3), (3, 1)), (-1, (2,), (1,)), (0, (2,), (-1,))):
        with pytest.raises(ValueError, match="a tensor of size"):
            lmdbs.tensor(stored, offset, size, stride)
    for kind in (torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8):
        made = torch.arange(6).reshape(2, 3).to(kind).T
        np.testing.assert_array_equal(lmdbs.unpickled(Place(Path("x")), pickle.dumps(made)), made.numpy())


def test_an_lmdb_that_lacks_a_key_or_a_length(tmp_path):
    known = layouts.crystals(stress=False)
    content = {str(k).encode(): layouts.pickled(layouts.graph(k, s)) for k, s in enumerate(known)}
    layouts.lmdb_file(tmp_path / "a.lmdb", content)
    assert len(read("oc22", tmp_path)[0]) == 9
    (tmp_path / "a.lmdb").unlink()
    del content[b"7"]
    layouts.lmdb_file(tmp_path / "a.lmdb", content | {b"length": pickle.dumps(9)})
    kept, fault = until_fault("oc22", tmp_path)
    assert len(kept) == 7 and "a.lmdb: key 7 of 9: missing" in str(fault)
    spoiled = layouts.graph(2, known[2])
    del spoiled["force"]
    layouts.lmdb_file(tmp_path / "a.lmdb", content | {b"2": layouts.pickled(spoiled), b"length": pickle.dumps(7)})
    kept, fault = until_fault("oc22", tmp_path)
    assert len(kept) == 2 and "key 2: force or forces is missing; there is y, pos" in str(fault)


def test_an_s2ef_pair_that_disagrees(tmp_path):
    import lzma

    layouts.oc20(tmp_path, layouts.crystals(stress=False))
    lines = lzma.open(tmp_path / "0.txt.xz", "rt").readlines()
    for some, short in ((lines[:-1], "0.txt.xz"), ([*lines, lines[0]], "0.extxyz.xz")):
        with lzma.open(tmp_path / "0.txt.xz", "wt") as file:
            file.writelines(some)
        kept, fault = until_fault("oc20", tmp_path)
        assert len(kept) == min(9, len(some)) and "one is truncated" in str(fault)
        assert str(fault).startswith(str(tmp_path / short))
    with lzma.open(tmp_path / "0.txt.xz", "wt") as file:
        file.writelines([lines[0], "random0;frame1;2\n"])
    _, fault = until_fault("oc20", tmp_path)
    assert "0.txt.xz: line 2: system,frame,energy was expected" in str(fault)
    (tmp_path / "0.txt.xz").unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.txt\.xz: missing beside"):
        script("oc20").inputs(script("oc20").Options(raw=str(tmp_path)))


# ---------------------------------------------------------------------------------------------------------- real samples
def shared(name):
    path = SHARED / name
    if not path.exists():
        required = "shared" in os.environ.get("GNNSCALE_REQUIRE", "")
        (pytest.fail if required else pytest.skip)(f"no {path}: the real samples are not on this machine")
    return path


class Sample(NamedTuple):
    """What a real file must give."""

    script: str
    path: str
    structures: int
    atoms: int
    groups: int
    energy: tuple[float, float]  # eV/atom, between
    force_rms: float  # eV/Angstrom
    pbc: tuple[bool, ...]
    options: tuple[tuple[str, str], ...] = ()


NO, YES = (False,) * 3, (True,) * 3
SAMPLES = [  # counts and statistics of shared/DATA.md
    Sample(
        "extxyz", "mptrj_1k/mptrj-random-1k.xyz", 1000, 31312, 998, (-15, 0), 1.27, YES, (("group", "mptrj_traj_id"),)
    ),
    Sample("extxyz", "alexandria_1k", 1000, 7669, 1000, (-15, 1), 0.0205, YES, (("group", "alexandria_id"),)),
    Sample("extxyz", "mad_1k", 1000, 29213, 4, (-11, 1), 4.5, YES, (("group", "subset"),)),
    Sample("extxyz", "bpa3_train/train_300K.xyz", 500, 13500, 500, (-655, -653), 0.95, NO),
    Sample("extxyz", "ethanol_methanol/train.xyz", 1000, 9000, 1, (-470, -460), 1.19, NO, (("group", "config_type"),)),
    Sample("ani1x", "ani1x_release_format", 8, 120, 5, (-1500, -500), 0.792, NO),
    Sample("mptrj", "mptrj_1k/MPtrj_layout_sample.DERIVED.json", 11, 150, 2, (-8, -6), 0.863, YES),
    Sample("oc20", "oc20_relaxations/s2ef_layout.DERIVED", 886, 76473, 20, (-9, -1), 0.35, YES, (("energy", "raw"),)),
    Sample("oc20", "oc20_relaxations/lmdb_layout.DERIVED", 111, 9513, 19, (-0.1, 0.3), 0.392, YES),
    Sample("omat24", "oc20_relaxations/aselmdb_layout.DERIVED", 56, 4787, 19, (-9, -1), 0.464, YES),
    Sample("spice", "spice_format/SPICE-1.1.4_n2.hdf5", 55, 1375, 2, (-1310, -370), 0.86, NO),
]


@cache
def sampled(sample):
    return read(sample.script, shared(sample.path), **dict(sample.options))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: f"{s.script}-{Path(s.path).name}")
def test_real_files_are_read(sample):
    found, skipped = sampled(sample)
    assert len(found) == sample.structures and not skipped
    assert sum(len(s.numbers) for s in found) == sample.atoms and len({s.group for s in found}) == sample.groups
    energies = np.array([s.energy / len(s.numbers) for s in found])
    assert sample.energy[0] < energies.min() and energies.max() < sample.energy[1]
    forces = np.concatenate([s.forces for s in found])
    assert np.sqrt((forces**2).mean()) == pytest.approx(sample.force_rms, rel=0.02)
    for k, s in enumerate(found):
        convert.check(s, k)
        assert tuple(s.pbc) == sample.pbc
        assert np.isnan(s.stress).all() == (sample.pbc == NO or "oc20" in sample.path)
        nearest = np.linalg.norm(s.positions[:, None] - s.positions[None], axis=-1) + 9 * np.eye(len(s.numbers))
        assert nearest.min() > 0.5  # Angstrom: in Bohr or nm nothing would pass both this and the next
        assert sample.pbc == YES or nearest.min(0).max() < 3.5
    assert len({splits.split_of(s.group, Split(test=0.4)) for s in found}) > 1 or sample.groups < 3


def of(script, part):
    return next(s for s in SAMPLES if s.script == script and part in s.path)


def slope(found, stress=False, reach=0.06):
    """Of dE over its estimate from forces and stress at both ends, between frames of one group; 1 if all is right.

    Only of steps so short (Angstrom, of any atom) that the trapezoid is good.
    """
    pairs = []
    for one, two in itertools.pairwise(found):
        if one.group != two.group:
            continue
        moved, mean = two.positions - one.positions, (one.cell + two.cell) / 2
        if one.pbc.all():  # at fixed cell, by the shortest way
            moved = two.positions @ np.linalg.inv(two.cell) - one.positions @ np.linalg.inv(one.cell)
            moved = (moved - np.round(moved)) @ mean
        if np.abs(moved).max() > reach:
            continue
        work = -0.5 * ((one.forces + two.forces) * moved).sum()
        if stress:
            strain = np.linalg.inv(one.cell) @ (two.cell - one.cell)
            work += 0.25 * abs(np.linalg.det(mean)) * ((one.stress + two.stress) * (strain + strain.T)).sum()
        pairs.append((work, two.energy - one.energy))
    assert len(pairs) >= 5
    work, change = np.array(pairs).T
    return (work @ change) / (work @ work)


def test_forces_are_the_derivative_of_the_energy_in_oc20():
    """Frames of relaxations, four steps apart."""
    found, _ = sampled(of("oc20", "s2ef"))
    assert slope(found) == pytest.approx(1.0, abs=0.05)


def test_forces_and_stress_are_derivatives_of_the_energy_in_mptrj():
    """Without its stress, or with one of the wrong sign or unit, this relaxation of the cell would be at 1.4 or more."""
    found, _ = sampled(of("mptrj", "MPtrj"))
    frames = sorted(found, key=lambda s: [int(part) for part in s.label.split("-")[-2:]])
    frames = [s for s in frames if s.group == "mp-1020019"]
    assert slope(frames, stress=True) == pytest.approx(1.0, abs=0.05)
    assert slope(frames, stress=False) > 1.4


@pytest.mark.parametrize(("part", "charge", "least"), [(("ani1x", "release"), 0, 0.85), (("spice", "n2"), 1, 0.95)])
def test_forces_agree_with_another_method(part, charge, least):
    """GFN2-xTB is near DFT: within a tenth or so, where a wrong sign or length is a factor of -1, 0.53 or 1.9."""
    from ase.units import Bohr, Hartree
    from tblite.interface import Calculator

    mine, other = [], []
    for s in sampled(of(*part))[0][:: 1 + 6 * charge]:
        calculator = Calculator("GFN2-xTB", s.numbers, s.positions / Bohr, charge=charge)
        calculator.set("verbosity", 0)
        other.append(-calculator.singlepoint().get("gradient") * Hartree / Bohr)
        mine.append(s.forces)
    a, b = np.concatenate(mine).ravel(), np.concatenate(other).ravel()
    assert np.corrcoef(a, b)[0, 1] > least and (a @ b) / (b @ b) == pytest.approx(1.0, abs=0.2)


def test_the_same_crystals_by_three_routes(tmp_path):
    """Real rows of MPtrj: their JSON, extended XYZ and Alexandria's layout made of them."""
    found, _ = sampled(of("mptrj", "MPtrj"))
    layouts.alexandria(tmp_path, found)
    layouts.extxyz(tmp_path, found)
    for name, raw in (("alexandria", tmp_path), ("extxyz", tmp_path)):
        again, _ = read(name, raw)
        assert len(again) == len(found) and all(same(one, two) for one, two in zip(again, found))


def test_a_pair_of_positions_in_mptrj_agrees():
    """The file has them fractional and Cartesian: a lattice read the other way round would show."""
    import json

    found, _ = sampled(of("mptrj", "MPtrj"))
    stored = json.loads(shared(of("mptrj", "MPtrj").path).read_text())
    frames = [frame for frames in stored.values() for frame in frames.values()]
    for one, frame in zip(found, frames, strict=True):
        np.testing.assert_allclose(one.positions, [site["xyz"] for site in frame["structure"]["sites"]], atol=1e-6)


def test_extended_xyz_is_read_as_ase_reads_it():
    import ase.io

    for name in ("mad_1k/mad_small_val.xyz", "bpa3_train/train_mixedT.xyz", "qm9_format/qm9_reduced_100.xyz"):
        with Place(shared(name)) as place:
            for mine, other in zip(extxyz.frames(place), ase.io.iread(place.path, ":60")):
                assert np.array_equal(mine.numbers, other.numbers) and np.array_equal(mine.pbc, other.pbc)
                assert np.array_equal(mine.columns["pos"], other.positions)
                assert np.array_equal(mine.cell, other.cell.array)
                assert "forces" not in mine.columns or np.array_equal(mine.columns["forces"], other.get_forces())
                assert set(other.info) <= set(mine.info)


def test_qm9s_real_molecules_in_its_published_layout(tmp_path):
    with Place(shared("qm9_format/qm9_reduced_100.xyz")) as place:
        frames = list(extxyz.frames(place))
    template = layouts.molecules(forces=False)[0]
    known = [
        template._replace(
            numbers=f.numbers, positions=f.columns["pos"], energy=float(f.info["U0"]) * layouts.HARTREE,
            forces=np.full_like(f.columns["pos"], np.nan),
        )
        for f in frames
    ]  # fmt: skip
    layouts.qm9(tmp_path, known)
    found, _ = read("qm9", tmp_path, uncharacterized="keep")
    assert len(found) == 100 and all(same(one, two) for one, two in zip(found, known))


def test_placeholder_labels_in_qm7xs_layout_are_not_taken_for_real():
    """The file's energies are GFN1-xTB's, of valence electrons: no total energies of PBE0."""
    _, fault = until_fault("qm7x", shared("qm7x_geometries"))
    assert "Geom-m1-i1-c1-1: -37.592 eV per atom cannot be a total energy" in str(fault)


def test_qm7xs_layout_with_total_energies(tmp_path):
    import shutil

    shutil.copy(shared("qm7x_geometries/qm7x_layout.SYNTHETIC.hdf5"), tmp_path / "1000.hdf5")
    shutil.copy(shared("qm7x_geometries/DupMols.SYNTHETIC.dat"), tmp_path / "DupMols.dat")
    os.chmod(tmp_path / "1000.hdf5", 0o600)
    with h5py.File(tmp_path / "1000.hdf5", "a") as file:
        groups = [group for molecule in file.values() for group in molecule.values()]
        for group in groups:  # what the valence energies lack of the total ones
            core = sum(
                {1: 0.0, 6: -980.0, 7: -1430.0, 8: -1950.0, 16: -10700.0, 17: -12400.0}[z] for z in group["atNUM"]
            )
            group["ePBE0+MBD"][...] = group["ePBE0+MBD"][...] + core
    found, skipped = read("qm7x", tmp_path)
    assert len(found) == 30 and skipped == {"listed as duplicate in DupMols.dat": 6} and len(groups) == 36
    assert 0.5 < slope(found, reach=9.0) < 1.2  # displacements of 1 to 2 Angstrom: the sign and the order, no more


# ----------------------------------------------------------------------------------------------------- by its own path
def test_a_script_runs_by_path(tmp_path):
    layouts.extxyz(tmp_path, layouts.crystals() * 5)
    command = [sys.executable, str(ROOT / "datasets" / "extxyz.py"), str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--limit", "40", "--theory=none"], env=os.environ | ENV, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "40 structures" in done.stdout and "/s, about" in done.stdout and "lacking nothing" in done.stdout
    assert (tmp_path / "out" / "card.json").exists() and (tmp_path / "out" / "shards" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["{raw}", "{out}", "--limit", "none"], 2, "--limit: Input should be a valid integer"),
        (["{raw}", "{out}", "--level", "best"], 2, "--level: Input should be"),
        (["{raw}/nowhere", "{out}"], 64, "no such file or folder; download ani1x-release.h5"),
        (["{raw}", "{raw}"], 64, "card.json exists"),
        (["{raw}", "{out}"], 64, "ani1x-release.h5: group B: coordinates is missing"),
    ],
)
def test_a_script_tells_what_is_wrong(words, code, told, tmp_path, monkeypatch, capsys):
    from gnnscale.data import standalone

    with h5py.File(layouts.ani1x(tmp_path, layouts.molecules()), "a") as file:
        del file["B/coordinates"]
    (tmp_path / "card.json").touch()
    argv = ["ani1x.py", *(word.format(raw=tmp_path, out=tmp_path / "out") for word in words)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        standalone.main(vars(script("ani1x")))
    assert end.value.code == code and told in capsys.readouterr().err
    assert not (tmp_path / "out" / "card.json").exists()
