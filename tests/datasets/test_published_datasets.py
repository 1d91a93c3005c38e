"""Every script in datasets/: its card, its light import, and structures read back as published."""

import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections import Counter

import h5py
import numpy as np
import pytest
from pydantic import ValidationError

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.contract.errors import BadFile
from gnnscale.data.conversion.reading import check_structure
from gnnscale.data.formats import pieces
from gnnscale.data.formats.raw_files import DOWNLOAD_AGAIN
from tests.support import layouts
from tests.support.corpus import ENV, ROOT
from tests.support.layouts import CASES, LAYOUTS
from tests.support.raw import OWN, RAW, is_same, load_script, read_all, read_until_fault

HEAVY = {"ase", "numpy", "scipy", "torch", "h5py", "lmdb", "ijson", "orjson", "tblite", "vesin", "adios2"}


# ------------------------------------------------------------------------------------------------------- each script
def test_each_script_has_a_layout_that_tests_it():
    assert set(LAYOUTS) == set(RAW)


@pytest.mark.parametrize("name", RAW)
def test_cards_and_options_are_whole(name):
    options = load_script(name).Options(raw="somewhere")
    card = load_script(name).card(options)
    assert isinstance(card, DatasetCard) and card == load_script(name).card(options)
    assert card.structures > 0 and card.atoms_per_structure > 1 and 0 < card.seconds_per_structure < 0.1
    assert card.title and card.theory and card.citation and card.licence and card.mirrors is None
    if name not in OWN:
        assert "10." in card.citation and card.structures > 100_000
        fewer = load_script(name).card(load_script(name).Options(raw="somewhere", limit=2))
        assert fewer.structures < card.structures
    for field, information in load_script(name).Options.model_fields.items():
        assert information.description and len(information.description) > 15, f"{name}.{field} has no description"
    with pytest.raises(ValidationError):
        load_script(name).Options(raw="somewhere", limit=0)
    with pytest.raises(ValidationError):
        load_script(name).Options()


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
        options = load_script(name).Options(raw=str(raw))
        with pytest.raises(FileNotFoundError, match=r"download|give the path") as told:
            load_script(name).input_files(options)
        assert str(raw) in str(told.value)
        with pytest.raises(FileNotFoundError):
            load_script(name).pieces(options)


# ------------------------------------------------------------------------------------------------- published layouts
@pytest.mark.parametrize(("name", "number"), CASES)
def test_what_was_written_is_read(name, number, tmp_path):
    layout = LAYOUTS[name][number]
    known = layout.known()
    spoilable = layout.write(tmp_path, known)
    found, skipped = read_all(name, tmp_path, **layout.options)
    assert len(found) == len(known) and not skipped
    for k, (one, two) in enumerate(zip(found, known)):
        assert is_same(one, two), f"{name}: structure {k}: {one} is not {two}"
        check_structure(one, ("here", 0))
        assert isinstance(one.energy, float) and one.pbc.dtype == bool and one.numbers.dtype.kind == "i"
        assert one.label and str(tmp_path) not in one.label + one.group
    assert len({s.group for s in found}) == layout.groups
    assert len({s.label for s in found}) == len(found)
    if layout.groups == 3:
        assert all(len({s.group for s in found[k : k + 3]}) == 1 for k in (0, 3, 6))
    inputs = load_script(name).input_files(load_script(name).Options(raw=str(tmp_path), **layout.options))
    assert spoilable in inputs and all(path.is_file() for path in inputs) and len(inputs) == len(set(inputs))
    one, _ = read_all(name, spoilable if name != "deepmd" else spoilable.parents[1], limit=1, **layout.options)
    assert 1 <= len(one) <= 3 and is_same(one[0], known[3 if name == "deepmd" else 0])


@pytest.mark.parametrize(("name", "number"), CASES)
def test_truncated_files_are_told_with_name_and_position(name, number, tmp_path):
    layout = LAYOUTS[name][number]
    known = layout.known()
    path = layout.write(tmp_path, known)
    whole, before = path.read_bytes(), read_all(name, tmp_path, **layout.options)[0]
    for share in (0.0, 0.003, 0.3, 0.55, 0.8, 0.97):
        cut = int(share * len(whole))
        while layout.write is layouts.write_extxyz and whole[cut - 1 : cut] == b"\n":  # a whole frame may end there
            cut -= 1
        path.write_bytes(whole[:cut])
        kept, fault = read_until_fault(name, tmp_path, **layout.options)
        if layout.write is layouts.write_extxyz and cut == 0:
            assert not kept
            continue
        assert isinstance(fault, BadFile), f"{name}: cut at {share} of {len(whole)} bytes went unnoticed"
        assert path.name.split(".")[0] in str(fault) and str(tmp_path) in str(fault) and len(str(fault)) < 600
        assert len(kept) < len(before) and all(is_same(a, b) for a, b in zip(kept, before))
    path.write_bytes(b"\x00" * 5000)
    assert isinstance(read_until_fault(name, tmp_path, **layout.options)[1], BadFile)


@pytest.mark.parametrize(("name", "number"), [c for c in CASES if LAYOUTS[c[0]][c[1]].write is not layouts.write_oc22])
def test_flipped_bytes_leak_no_other_error(name, number, tmp_path):
    """A flipped byte under a checksum is found; any other may at most raise an error with the file's name."""
    layout = LAYOUTS[name][number]
    path = layout.write(tmp_path, layout.known())
    whole, found, tries = path.read_bytes(), 0, 12
    values = [k for k in range(len(whole)) if whole[k : k + 1] != b"\x00"]
    if layout.write is layouts.write_aselmdb:  # LMDB's own pages have no checksum, and it trusts them
        start = whole.index(b"\x78\x9c", 8000)
        values = [k for k in values if k > start + 2 and whole[k - 1 : k + 2] != b"\x78\x9c"]
    rng = random.Random(1)
    for _ in range(tries):
        spoiled = bytearray(whole)
        for _ in range(3):
            spoiled[rng.choice(values)] ^= 1 << rng.randrange(8)
        path.write_bytes(spoiled)
        _, fault = read_until_fault(name, tmp_path, **layout.options)
        assert fault is None or path.name.split(".")[0] in str(fault)
        found += fault is not None
    if path.suffix in (".xz", ".bz2"):
        assert found == tries


@pytest.mark.parametrize(
    ("name", "before", "after", "words"),
    [
        ("mptrj", '"force"', '"farce"', ["mp-0 mp-0-0-0", "force is missing", "farce"]),
        ("mptrj", '"element": "Ti"', '"element": "Tj"', ["'Tj' is no element"]),
        ("mptrj", '"matrix": [[', '"matrix": [["x", ', ["mp-0 mp-0-0-0", "unreadable"]),
        ("extxyz", " energy=", " energie=", ["frame 0, line 1", "no energy under the key 'energy'", "energie"]),
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
    _, fault = read_until_fault(name, tmp_path, **layout.options)
    assert isinstance(fault, BadFile)
    assert (fault.hints == (DOWNLOAD_AGAIN,)) == (name not in OWN)
    assert all(word in str(fault) for word in [str(path), *words]), str(fault)


# ---------------------------------------------------------------------------------------------------------------- pieces
@pytest.mark.parametrize(("name", "number"), CASES)
def test_pieces_are_independent_in_any_order(name, number, tmp_path, monkeypatch):
    """Each piece is read alone, the last first, as other processes would; its name does not contain the folder's path."""
    monkeypatch.setattr(pieces, "ROWS_PER_PIECE", 4)
    monkeypatch.setattr(pieces.pieces_by_range, "__defaults__", (4,))
    layout = LAYOUTS[name][number]
    layout.write(tmp_path, layout.known())
    options = load_script(name).Options(raw=str(tmp_path), **layout.options)
    parts = load_script(name).pieces(options)
    assert len({piece.name for piece in parts}) == len(parts) and all(piece.structures > 0 for piece in parts)
    assert not any(str(tmp_path) in piece.name for piece in parts) and parts == load_script(name).pieces(options)
    found = {
        piece.name: list(load_script(name).structures(options, piece, lambda _: None)) for piece in reversed(parts)
    }
    together = [s for piece in parts for s in found[piece.name]]
    assert all(is_same(one, two) for one, two in zip(together, layout.known(), strict=True))
    whole = ("extxyz", "qm9", "mptrj", "alexandria", "oc20", "pymatgen_json")
    assert len(parts) > 1 or name in whole or layout.write is layouts.write_ase_json, "these can be read in pieces"


@pytest.mark.parametrize("limit", [1, 5, 9, 100])
def test_a_limit_of_frames_holds_over_all_files(limit, tmp_path):
    for k in range(2):
        (tmp_path / f"lmdb{k}").mkdir()
        (tmp_path / "s2ef" / str(k)).mkdir(parents=True)
        layouts.write_oc22(tmp_path / f"lmdb{k}", layouts.make_crystals(stress=False))
        layouts.write_oc20(tmp_path / "s2ef" / str(k), layouts.make_crystals(stress=False))
    assert len(read_all("oc20", tmp_path / "s2ef", limit=limit, energy="raw")[0]) == min(limit, 18)
    assert len(read_all("oc20", tmp_path, limit=limit, energy="raw")[0]) == min(limit, 36)
    shutil.rmtree(tmp_path / "s2ef")
    assert len(read_all("oc22", tmp_path, limit=limit)[0]) == min(limit, 18)


@pytest.mark.parametrize(("name", "write"), [("oc20", layouts.write_oc20), ("oc22", layouts.write_oc22)])
@pytest.mark.parametrize(
    "folders",
    [
        ("s2ef_train_200K/s2ef_train_200K", "s2ef_val_id/s2ef_val_id", "s2ef_val_ood_both/s2ef_val_ood_both"),
        ("s2ef/200K/train", "s2ef/all/val_id", "s2ef/all/val_ood_ads"),
        tuple(
            f"s2ef_total_train_val_test_lmdbs/data/oc22/s2ef-total/{name}" for name in ("train", "val_id", "val_ood")
        ),
    ],
)
def test_a_published_split_is_kept_where_all_of_it_is_there(name, write, folders, tmp_path):
    """One split alone is split by hash; an incomplete set of splits is refused before anything is read."""
    options = {"energy": "raw"} if name == "oc20" else {}
    for n, folder in enumerate(folders):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder, layouts.make_crystals(stress=False))
        if n == 0:
            assert {s.split for s in read_all(name, tmp_path, **options)[0]} == {None}
        elif n == 1:
            with pytest.raises(BadFile, match="of the published split there is train, validation, by folders"):
                load_script(name).input_files(load_script(name).Options(raw=str(tmp_path)))
    found, _ = read_all(name, tmp_path, **options)
    assert [s.split for s in found] == ["train"] * 9 + ["validation"] * 9 + ["test"] * 9
    (tmp_path / "s2ef_rattled").mkdir()
    write(tmp_path / "s2ef_rattled", layouts.make_crystals(stress=False))
    assert Counter(s.split for s in read_all(name, tmp_path, **options)[0])["train"] == 18
    (tmp_path / "other_train").mkdir()
    write(tmp_path / "other_train", layouts.make_crystals(stress=False))
    with pytest.raises(
        BadFile, match=r"there is test, train, validation, by folders .*; other_train/.* is in no such folder"
    ):
        load_script(name).input_files(load_script(name).Options(raw=str(tmp_path)))


@pytest.mark.parametrize("name", ["oc20", "oc22"])
@pytest.mark.parametrize("limit", [None, 3])
def test_test_data_without_labels_are_left_out(name, limit, tmp_path, monkeypatch):
    """Published test records have no energy and forces. They are counted as skipped, also with a limit for the others."""
    whole = layouts.make_graph

    def bare(k, s):
        return {key: value for key, value in whole(k, s).items() if key not in ("y", "force")}

    for folder in ("test_id", "test_ood_ads", "train", "val_id", "val_ood"):
        (tmp_path / folder).mkdir()
        monkeypatch.setattr(layouts, "make_graph", bare if folder.startswith("test") else whole)
        layouts.write_oc22(tmp_path / folder, layouts.make_crystals(stress=False))
    options = {"energy": "raw"} if name == "oc20" else {}
    found, skipped = read_all(name, tmp_path, limit=limit, **options)
    assert len(found) == (limit or 27) and skipped == {"published without labels": 18}


def test_molecules_of_qm9_as_single_files(tmp_path, monkeypatch):
    monkeypatch.setattr(load_script("qm9"), "ROWS_PER_PIECE", 4)
    path = layouts.write_qm9(tmp_path, layouts.make_molecules(forces=False))
    in_tar, _ = read_all("qm9", tmp_path)
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path, filter="data")
    path.unlink()
    alone, _ = read_all("qm9", tmp_path)
    assert len(alone) == 9 and all(is_same(one, two) and one.label == two.label for one, two in zip(alone, in_tar))
    parts = load_script("qm9").pieces(load_script("qm9").Options(raw=str(tmp_path), limit=6))
    assert [piece.name for piece in parts] == [
        "dsgdb9nsd_000001.xyz to dsgdb9nsd_000004.xyz",
        "dsgdb9nsd_000005.xyz to dsgdb9nsd_000006.xyz",
    ]


# ---------------------------------------------------------------------------------------------------- what is left out
def test_what_is_left_out_is_counted(tmp_path):
    folders = {}
    for name in ("ani1x", "spice", "qm7x", "qm9", "omol25"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        LAYOUTS[name][0].write(folders[name], LAYOUTS[name][0].known())
    found, skipped = read_all("ani1x", folders["ani1x"], level="ccsd(t)_cbs")
    assert len(found) == 3 and skipped == {"no energy at ccsd(t)_cbs": 6} and np.isnan(found[0].forces).all()
    found, skipped = read_all("spice", folders["spice"], charge="neutral")
    assert len(found) == 3 and skipped == {"charged": 6}
    (folders["qm7x"] / "DupMols.dat").write_text("Geom-m2-i1-c1-opt\n")
    found, skipped = read_all("qm7x", folders["qm7x"])
    assert {s.group for s in found} == {"1", "10"} and skipped == {"listed as duplicate in DupMols.dat": 3}
    (folders["qm9"] / "uncharacterized.txt").write_text("Table\n===\n 4 CCO C 1.0\n9 C C 2.0\n")
    found, skipped = read_all("qm9", folders["qm9"])
    assert len(found) == 7 and skipped.total() == 2 and "dsgdb9nsd_000004" not in {s.group for s in found}
    found, skipped = read_all("omol25", folders["omol25"], charge="neutral")
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
            read_all(name, tmp_path / name)
        assert len(read_all(name, tmp_path / name, **{option: "keep"})[0]) == 9


def test_energies_and_forces_are_of_one_level(tmp_path):
    known = layouts.make_molecules()
    layouts.write_qm7x(tmp_path, known)
    found, _ = read_all("qm7x", tmp_path, level="PBE0")
    np.testing.assert_allclose(found[0].forces, known[0].forces + 0.5)
    assert found[0].energy == pytest.approx(known[0].energy + 0.25)
    layouts.write_mptrj(tmp_path, layouts.make_crystals())
    found, _ = read_all("mptrj", tmp_path, energy="corrected")
    assert found[0].energy == pytest.approx(layouts.make_crystals()[0].energy - 3.0)


# ----------------------------------------------------------------------------------------------------- by its own path
@pytest.mark.slow
def test_a_script_runs_by_path(tmp_path):
    layouts.write_extxyz(tmp_path, layouts.make_crystals() * 5)
    command = [sys.executable, str(ROOT / "datasets" / "extxyz.py"), str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--limit", "40", "--theory=none"], env=os.environ | ENV, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "40 structures" in done.stdout and "/s, about" in done.stdout and "lacking nothing" in done.stdout
    assert (tmp_path / "out" / "card.json").exists() and (tmp_path / "out" / "shards" / "manifest.json").exists()


@pytest.mark.slow
def test_a_script_on_two_ranks_and_again(tmp_path):
    """The second rank may be faster. The same command is refused when all is done, or was begun with other options."""
    for k in range(4):
        (tmp_path / "raw" / str(k)).mkdir(parents=True)
        layouts.write_deepmd(tmp_path / "raw" / str(k), layouts.make_crystals(seed=k) * 12)
    command = [sys.executable, str(ROOT / "datasets" / "deepmd.py"), str(tmp_path / "raw"), str(tmp_path / "out")]
    env = os.environ | ENV | {"WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    both = [
        subprocess.Popen(command, env=env | {"RANK": rank}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in "10"
    ]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert not said[0][0] and "432 structures, " in said[1][0]
    alone = [*command[:3], str(tmp_path / "alone")]
    assert subprocess.run(alone, env=os.environ | ENV, capture_output=True).returncode == 0
    cards = [(tmp_path / out / "card.json").read_bytes() for out in ("out", "alone")]
    assert cards[0] == cards[1]
    again = subprocess.run(alone, env=os.environ | ENV, capture_output=True, text=True)
    assert again.returncode == 64 and "card.json exists" in again.stderr
    (tmp_path / "alone" / "card.json").unlink()
    other = subprocess.run([*alone, "--limit", "3"], env=os.environ | ENV, capture_output=True, text=True)
    assert other.returncode == 64 and "a conversion with other options or files was begun here" in other.stderr


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
    from gnnscale.stages import dataset_script

    with h5py.File(layouts.write_ani1x(tmp_path, layouts.make_molecules()), "a") as file:
        del file["B/coordinates"]
    (tmp_path / "card.json").touch()
    argv = ["ani1x.py", *(word.format(raw=tmp_path, out=tmp_path / "out") for word in words)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        dataset_script.main(vars(load_script("ani1x")))
    assert end.value.code == code and told in capsys.readouterr().err
    assert not (tmp_path / "out" / "card.json").exists()
