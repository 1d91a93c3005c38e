"""A file that is given to the wrong reader is told with the right one."""

import bz2
import gzip
import lzma
import shutil

import pytest

from gnnscale.data.formats.recognise import recognise
from tests.support import layouts
from tests.support.raw import OWN, read_until_fault, require_sample

FILES = {  # a writer -> the dataset that reads it
    layouts.write_extxyz: "extxyz",
    layouts.write_trajectory: "ase_files",
    layouts.write_database: "ase_files",
    layouts.write_ase_json: "ase_files",
    layouts.write_pymatgen_list: "pymatgen_json",
    layouts.write_pyanitools: "pyanitools",
    layouts.write_aselmdb: "ase_files",
}
READERS = [name for name in OWN if name != "deepmd"]


@pytest.mark.parametrize("write", FILES, ids=lambda write: write.__name__)
def test_a_file_of_another_format_is_told_with_the_dataset_to_type(write, tmp_path):
    path = write(tmp_path, layouts.make_molecules() if write is layouts.write_pyanitools else layouts.make_crystals())
    for name in READERS:
        fault = read_until_fault(name, path)[1]
        if name == FILES[write]:
            assert fault is None
        else:
            assert str(path) in fault.message and FILES[write] in "".join(fault.hints), str(fault)
            assert len(str(fault)) < 600 and "codec" not in str(fault)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("content", "word", "advice"),
    [
        (b"", "empty: 0 bytes", ""),
        (b"<!DOCTYPE html>\n<html></html>", "web page", "download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
        (lzma.compress(b"1\n"), "xz", ".xz"),
        (gzip.compress(b"1\n"), "gzip", ".gz"),
        (bz2.compress(b"1\n"), "bzip2", ".bz2"),
    ],
    ids=["empty", "html", "lfs", "xz", "gzip", "bzip2"],
)
def test_what_is_no_data_is_told(name, content, word, advice, tmp_path):
    (tmp_path / "mine.data").write_bytes(content)
    fault = read_until_fault(name, tmp_path / "mine.data")[1]
    assert word in fault.message and "mine.data" in fault.message and advice in "".join(fault.hints)
    assert not any("download it again" in hint for hint in fault.hints)


def test_a_published_set_that_is_empty_is_to_be_downloaded_again(tmp_path):
    (tmp_path / "a.json").touch()
    assert "download it again" in "".join(read_until_fault("mptrj", tmp_path)[1].hints)


def test_a_folder_without_files_for_a_reader_is_told_with_what_is_in_it():
    with pytest.raises(FileNotFoundError, match=r"there is 2 of HDF5 \(type dataset: pyanitools"):
        read_until_fault("extxyz", require_sample("ani1_gdb"))


def test_real_files_are_recognised(tmp_path):
    for name, kind in [
        ("ani1_gdb/ani_gdb_s01.h5", "HDF5"),
        ("oc20_relaxations/traj/random1000100.traj", "ASE trajectory"),
        ("oxides_pbe/oxides.db", "SQLite database"),
        ("oxides_pbe/atom_ocp22.json", "JSON"),
        ("MoNbTaW/Mo_Surface.json", "JSON"),
        ("oc20_relaxations/lmdb_layout.DERIVED/data.0000.lmdb", "LMDB"),
        ("vasp_raw/parse-vasp-with-magmoms.zip", "zip archive"),
        ("bpa3_train/iso_atoms.xyz", "extended XYZ"),
    ]:
        assert recognise(require_sample(name)).name == kind
    shutil.copy(require_sample("oc20_relaxations/s2ef_layout.DERIVED/0.extxyz.xz"), tmp_path / "a.xyz")
    assert "end its name in .xz" in "".join(read_until_fault("extxyz", tmp_path)[1].hints)
