"""A key knows the code that a stage reaches, without comments and docstrings, and no other code."""

import json
import os

import pytest

from gnnscale.contract import source_code
from gnnscale.contract.places import ROOT, source_file, source_files, source_name
from gnnscale.contract.source_code import analyse_cpp, analyse_python, digest_source
from tests.support.corpus import ROOT as CHECKOUT
from workflow.config import study_files
from workflow.plan.build import DATASETS_CODE
from workflow.plan.keys import digest_code, digest_raw, files_of_module
from workflow.plan.stage import FOLDER_OF_KIND

CONVERT = (DATASETS_CODE, "datasets/generated.py")
EGNN = ("gnnscale/architectures/egnn.py", "gnnscale/models/egnn.py")
ALSO = {"convert": CONVERT, "convert_part": CONVERT, "train": EGNN, "evaluate": EGNN, "memory_levers": EGNN}


def test_the_files_of_every_stage_are_those_that_were_reviewed():
    """A file that comes to a stage or leaves it is seen in the difference of this list: its change makes all again."""
    found = {kind: list(digest_code(kind, *ALSO.get(kind, ()))) for kind in FOLDER_OF_KIND}
    stored = CHECKOUT / "tests" / "stored" / "hashed_files.json"
    if os.environ.get("GNNSCALE_RENEW"):
        stored.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(stored.read_text()), f"if that is wanted: GNNSCALE_RENEW=1 pytest {__file__}"


def test_imports_are_followed_and_nothing_else():
    train = digest_code("train")
    assert {"gnnscale/stages/train.py", "gnnscale/train/loop.py", "gnnscale/data/storage/mapped.py"} <= set(train)
    assert {"gnnscale/atoms/neighbors.py", "gnnscale/atoms/neighbors.cpp"} <= set(train)
    assert not any("scaling" in name or "report" in name or "evaluate" in name for name in train)
    assert not set(EGNN) & set(train), "networks are found by name: the plan adds the files of the chosen one"
    convert = digest_code("convert", *CONVERT)
    assert {*CONVERT, "gnnscale/data/generate/molecules.py", "gnnscale/data/generate/potentials.py"} <= set(convert)
    assert not any("train" in name for name in convert)


def test_the_headers_of_a_library_are_in_the_key_with_it():
    """The mathematics of a training is in them."""
    found = set(map(source_name, files_of_module("gnnscale.native.library")))
    native = {path for path in (ROOT / "gnnscale" / "native").rglob("*") if path.suffix in (".cpp", ".h")}
    assert len(native) > 5 and set(map(source_name, native)) < found
    assert not [name for name in map(source_name, files_of_module("gnnscale.native.packing")) if name.endswith(".h")]
    assert native <= set(source_files()), "which go into an image"


def test_rooms_without_results_are_not_hashed_unless_they_are_named():
    for kind in FOLDER_OF_KIND:
        for name in digest_code(kind):
            room = name.split("/")[1]
            assert name.count("/") >= 2 and room not in ("contract", "machine", "job"), name
    assert DATASETS_CODE in digest_code("convert", DATASETS_CODE)


def test_the_chosen_network_is_in_the_key_and_no_other():
    forms = {}
    for form in ("deferred", "paper"):
        model = study_files.load("smoke")[1].train.model.model_copy(update={"form": form})
        forms[form] = {name for name in digest_code("train", *model.source_files) if "egnn" in name}
    assert forms["deferred"] == set(EGNN)
    assert forms["paper"] == {"gnnscale/architectures/egnn.py", "gnnscale/models/egnn_paper.py"}


CODE = '''"""About this."""

SIZE = 3  # rows


class Table:
    """Some rows."""

    def rows(self) -> int:
        """Return them."""
        return SIZE * 2
'''
SAME = ("# rows", "# lines"), ("Some rows", "Several rows"), ("About this", "On that"), ("\n\n\n", "\n\n\n\n# new\n\n")
OTHER = ("= 3", "= 4"), ("* 2", "* 2.0"), ("rows(self)", "lines(self)"), ("-> int", "-> float"), ("* 2", "+ 2")


@pytest.mark.parametrize(("old", "new"), SAME)
def test_comments_and_docstrings_change_no_digest(old, new):
    assert analyse_python(CODE.replace(old, new).encode()) == analyse_python(CODE.encode())
    assert old in CODE


@pytest.mark.parametrize(("old", "new"), OTHER)
def test_whatever_is_run_changes_the_digest(old, new):
    assert analyse_python(CODE.replace(old, new).encode()).digest != analyse_python(CODE.encode()).digest
    assert old in CODE


def test_a_constant_is_not_taken_for_another_of_equal_value():
    digests = {analyse_python(f"x = {value}".encode()).digest for value in ("1", "1.0", "True", "'1'", "b'1'", "None")}
    assert len(digests) == 6


def test_a_string_that_is_no_docstring_counts():
    assert analyse_python(b"def f():\n    x = 1\n    'a'\n") != analyse_python(b"def f():\n    x = 1\n    'b'\n")


def test_imports_are_found_wherever_they_stand():
    code = (
        b"import a.b\nfrom c import (\n    d,  # why\n    e as f,\n)\n\ndef g():\n    from h import i\n    'import j'\n"
    )
    assert analyse_python(code).imports == ("a.b", "c", "c.d", "c.e", "h", "h.i")


def test_comments_of_cpp_change_no_digest():
    code = b'int f() { return 1; }  // one\n/* two\n lines */ const char* s = "// three";\n'
    same = b'int f() { return 1; }  // 1\n/* 2 */ const char* s = "// three";\n'
    assert analyse_cpp(code) == analyse_cpp(same) != analyse_cpp(code.replace(b"three", b"four"))
    assert analyse_cpp(code) != analyse_cpp(code.replace(b"return 1", b"return 2"))


def test_a_file_that_is_changed_is_read_again(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("x = 1\n")
    first = digest_source(path)
    path.write_text("x = 1  # one\n")
    assert digest_source(path) == first
    path.write_text("x = 2\n")
    os.utime(path, ns=(1, 1))  # a clock that stands still must not hide it
    assert digest_source(path) != first


def test_the_cache_says_what_the_files_say(tmp_path, monkeypatch):
    """It is of contents, so nothing in it can be out of date; where it cannot be read or written, files are parsed."""
    wanted = digest_code("train")
    for folder in (tmp_path, tmp_path / "a file"):
        (tmp_path / "a file").write_text("")
        monkeypatch.setattr("gnnscale.contract.source_code.cache_folder", lambda folder=folder: folder)
        for broken in ("", '{"made_by": "an older one"}'):
            if folder == tmp_path:
                (folder / "source_code.json").write_text(broken)
            for _ in range(2):  # without the cache, then with it
                source_code._read.cache_clear()
                source_code._remembered.cache_clear()
                assert digest_code("train") == wanted
    kept = json.loads((tmp_path / "source_code.json").read_text())
    assert len(kept["files"]) == len(wanted)
    source_code._read.cache_clear()
    source_code._remembered.cache_clear()


def test_every_hashed_file_is_in_the_checkout():
    for kind in FOLDER_OF_KIND:
        assert all(source_file(name).is_relative_to(ROOT) for name in digest_code(kind, *ALSO.get(kind, ())))


def test_a_published_file_is_known_by_its_size_and_samples(tmp_path):
    path = tmp_path / "raw"
    path.write_bytes(b"a" * 3_000_000)
    first = digest_raw(path)
    path.write_bytes(b"a" * 2_999_999 + b"b")
    assert digest_raw(path) != first
    path.write_bytes(b"b" + b"a" * 2_999_999)
    assert digest_raw(path) != first
    path.write_bytes(b"a" * 3_000_001)
    assert digest_raw(path) != first
