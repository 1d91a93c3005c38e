"""The table of published files, and paths of studies that name a published set."""

import hashlib
import re
from pathlib import Path

import pytest

from gnnscale.contract import places
from gnnscale.contract.errors import UserError
from tests.support.raw import OWN, RAW, load_script, require_sample
from workflow.config import data_folder, site_files
from workflow.config.published_files import SETS, find_set
from workflow.config.study import DataSource, Study, Sweep


def study(dataset, raw):
    source = DataSource(name="a", dataset=dataset, options={"raw": raw})
    return Study(title="t", data=[source], sweeps=[Sweep(name="s")])


def placed(dataset, raw, *settings):
    found = data_folder.with_data_folder(study(dataset, raw), site_files.load("local", settings))
    return found.data[0].options["raw"]


@pytest.mark.parametrize("published", SETS, ids=lambda each: each.name)
def test_every_set_is_whole(published):
    script = load_script(published.dataset)
    licence = published.licence or script.card(script.Options(raw="x")).licence
    assert licence not in ("", "not stated") and published.page.startswith("https://") and published.origin
    names = [file.final_name for file in published.files]
    assert names and len(set(names)) == len(names)
    for file in published.files:
        assert file.url.startswith("https://") and "/" not in file.final_name + file.name and file.name[0] != "."
        assert re.fullmatch("([0-9a-f]{32})?", file.md5) and (file.size is None or file.size > 500)
        assert not file.size or file.size / 1e9 == pytest.approx(file.gigabytes, rel=0.05)
        assert not file.becomes or file.name.endswith((".tar", ".tar.gz", ".xz"))


def test_every_data_set_that_is_published_has_files():
    """A published one cites a DOI; data of the user's own cite what the user says."""
    cited = {name for name in RAW if "10." in load_script(name).card(load_script(name).Options(raw="x")).citation}
    assert {each.dataset for each in SETS if not each.script} == cited and len(cited) > 8
    assert {each.dataset for each in SETS if each.script} <= set(OWN)


def test_small_published_sets_are_the_samples_of_this_machine():
    """The sets of the benchmarks lie in ../shared/data under their names, so that these can stand for a download."""
    named = [each for each in SETS if each.script]
    assert len(named) > 5
    for published in named:
        for file in published.files:
            content = require_sample(f"{published.name}/{file.name}").read_bytes()
            assert (len(content), hashlib.md5(content).hexdigest()) == (file.size, file.md5)


def test_a_path_in_the_folder_of_published_data(tmp_path, monkeypatch):
    here = f"filesystems.data={tmp_path}"
    assert placed("ani1x", "data:ani1x", here) == str(tmp_path / "ani1x")
    assert placed("oc20", "data:oc20/20M", here) == str(tmp_path / "oc20" / "20M")
    assert placed("oc22", "data:oc22/s2ef/train", here) == str(tmp_path / "oc22" / "s2ef" / "train")
    assert placed("oc20", "some/data:oc20", here) == "some/data:oc20"
    assert placed("ani1x", "data:ani1x") == str(places.runs_folder().with_name("data") / "ani1x")
    monkeypatch.setenv("MY_DISK", str(tmp_path))
    assert placed("ani1x", "data:ani1x", "filesystems.data=$MY_DISK/d") == str(tmp_path / "d" / "ani1x")


@pytest.mark.parametrize(
    ("dataset", "raw", "words"),
    [
        ("ani1x", "data:ani1", "source 'a': raw: data:ani1: no published data set 'ani1'; did you mean 'ani1x'?"),
        ("oc20", "data:oc20", "choose one of oc20/200K, oc20/2M"),
        ("ani1x", "data:", "no published data set ''"),
        ("ani1x", "data:ani1x/../../etc", "no `..`"),
        ("mptrj", "data:oc22", "is read by the script 'oc22', not by 'mptrj'"),
    ],
)
def test_a_path_that_names_no_published_set(dataset, raw, words):
    with pytest.raises(UserError) as told:
        placed(dataset, raw)
    assert words in str(told.value)


def test_a_variable_that_is_not_set():
    with pytest.raises(UserError, match=r"filesystems.data: \$NOT_SET_HERE has a variable"):
        placed("ani1x", "data:ani1x", "filesystems.data=$NOT_SET_HERE")


def test_files_are_missing_until_they_have_their_final_names(tmp_path):
    published = find_set("qm7x")
    (tmp_path / ".1000.xz.part").touch()
    (tmp_path / "2000.hdf5").touch()
    missing = [file.final_name for file in data_folder.missing_files(published, tmp_path)]
    assert missing == ["1000.hdf5", *(f"{k}000.hdf5" for k in range(3, 9)), "DupMols.dat"]


def test_the_set_of_a_path():
    site = site_files.load("local", ["filesystems.data=/somewhere"])
    assert data_folder.set_of_path("/somewhere/oc20/20M", site) == find_set("oc20/20M")
    assert data_folder.set_of_path("/somewhere/oc22/below/it", site) == find_set("oc22")
    assert data_folder.set_of_path(str(Path("/elsewhere/oc22")), site) is None
