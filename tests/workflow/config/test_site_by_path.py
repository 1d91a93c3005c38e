"""A site given by the path of a file: the same in every verb, from any directory, and never taken for another."""

import json
import shutil

import pytest

from gnnscale.contract import files, places
from gnnscale.contract.errors import UserError
from tests.support.errors import message_of
from tests.workflow.cli.test_commands import call
from workflow.config import site_files
from workflow.run_directory import status
from workflow.run_directory.journal import Journal
from workflow.run_directory.status import PlanFile


@pytest.fixture
def mine(tmp_path):
    """Return the path of a site's file that is not in sites/."""
    path = tmp_path / "mine.yaml"
    path.write_text((places.SITES / "slurm.yaml").read_text().replace("a cluster with Slurm", "my cluster"))
    return path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("plan --study smoke", "Smoke"),
        ("sites show mine.yaml", "title: my cluster"),
        ("sites validate ./mine.yaml", "./mine.yaml: valid"),
        ("sites render mine.yaml smoke", "#SBATCH --nodes=1"),
        ("doctor --no-job", "my cluster"),
        ("data list qm9 --set filesystems.data=/published", "/published"),
        ("advise nothing --gpu-hours 1", "nothing"),
        ("cancel --study smoke", "no study has been run"),
    ],
)
def test_every_verb_takes_a_path_from_where_it_is_typed(mine, words, said):
    words = words.split()
    chosen = [] if words[0] == "sites" else ["--site", "mine.yaml"]
    done = call(*words, *chosen, "--root", str(mine.parent / "run"), cwd=mine.parent)
    assert said in done.stdout + done.stderr and "no site" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("min.yaml", "--site min.yaml: no such file\ndid you mean 'mine.yaml'?"),
        ("perlmuter.yaml", "among the sites in sites/, did you mean 'perlmutter'?"),
        ("./mine", "--site ./mine: no such file\ndid you mean 'mine.yaml'?"),
        ("folder.yaml", "--site folder.yaml: is a directory, expected a YAML file"),
        ("study.yaml", "study.yaml: this is a study, expected the file of a site\ntype --study study.yaml"),
        ("-x.yaml", "has letters, digits"),
        ("empty.yaml", "empty.yaml:1: found"),
        ("perlmuter", "no site 'perlmuter' in sites/; did you mean 'perlmutter'?\nor give the path of a YAML file"),
    ],
)
def test_a_wrong_path_is_told(mine, monkeypatch, typed, said):
    monkeypatch.chdir(mine.parent)
    (mine.parent / "folder.yaml").mkdir()
    (mine.parent / "empty.yaml").touch()
    shutil.copy(places.STUDIES / "smoke.yaml", "study.yaml")
    assert said in message_of(lambda: site_files.load(typed))


def test_a_file_of_ones_own_has_no_other_layer(mine, tmp_path, monkeypatch):
    """A layer for the name would change what the file says, without a word."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    layer = site_files.user_file("mine")
    files.write(layer, "title: layered\nscheduler: {kind: none}\nverified: {level: docs, date: '2026-11-21'}\n")
    assert site_files.load(str(mine)).title == "my cluster"
    assert site_files.load("mine").title == "layered"
    assert site_files.load(str(layer)).title == "layered", "the path of a file that has a name means that site"
    files.write(site_files.user_file("lumi"), "account: project_465000007\n")
    assert site_files.load(str(places.SITES / "lumi.yaml")).account == "project_465000007"


def test_a_link_to_a_file_keeps_its_own_name(mine, tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    (tmp_path / "linked.yaml").symlink_to(mine)
    monkeypatch.chdir(tmp_path / "below")
    assert site_files.type_anywhere("../linked.yaml") == str(tmp_path.resolve() / "linked.yaml")


def test_what_to_type_next_has_the_whole_path(mine):
    asked = ["account_rule.required=true", "account_rule.example=abc123"]
    words = ["run", "--study", "smoke", "--site", "mine.yaml", *(word for each in asked for word in ("--set", each))]
    done = call(*words, "--root", str(mine.parent / "run"), cwd=mine.parent)
    assert done.returncode == 2 and "site mine charges jobs to an account" in done.stderr
    assert f"write `account: abc123` into {mine}" in done.stderr
    told = call("status", "--root", str(mine.parent / "run"), cwd="/")
    assert f"smoke on {mine}: no driver is running" in told.stdout


@pytest.fixture
def left(mine):
    """Return a run directory with one job that the site in the file may still have."""
    root = mine.parent / "run"
    root.mkdir()
    files.write_model(root / "plan.json", PlanFile(study="s", site="mine", site_file=str(mine), stages=()))
    Journal(root / "events.jsonl").note("intend", name="gs1", root=str(root), site="mine", stages={"train/a": ["t", 1]})
    return root


def test_another_file_of_the_same_name_is_another_site(mine, left, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "mine.yaml"
    shutil.copy(mine, other)
    for name, path in (("mine", str(other)), ("mine", ""), ("lumi", "")):
        with pytest.raises(UserError, match=f"1 job.* submitted to site {mine} .*is another site") as caught:
            status.check_site_file(left, name, path)
        assert f"cancel --site {mine} --root {left}" in str(caught.value)
    said = call("cancel", "--root", str(left), "--site", str(other)).stderr
    assert f"go on with --site {mine}" in said
    status.check_site_file(left, "mine", str(mine))
    other.unlink()
    other.symlink_to(mine)
    status.check_site_file(left, "mine", str(other))


def test_a_file_may_be_moved_while_jobs_run(mine, left, tmp_path):
    moved = tmp_path / "moved" / "mine.yaml"
    moved.parent.mkdir()
    mine.rename(moved)
    status.check_site_file(left, "mine", str(moved))


def test_cancel_finds_the_file_of_the_last_run(mine, left):
    assert call("cancel", "--root", str(left), cwd="/").stderr.count(str(mine)) == 0
    mine.unlink()
    assert f"--site {mine}: no such file" in call("cancel", "--root", str(left), cwd="/").stderr


def test_a_new_site_is_written_where_it_is_asked_for(tmp_path, monkeypatch, capsys):
    from workflow.cli import site_output

    monkeypatch.chdir(tmp_path)
    site_output.output_new_site("my/cluster.yaml", "title: new\n")
    assert (tmp_path / "my" / "cluster.yaml").read_text() == "title: new\n"
    assert "sites validate my/cluster.yaml" in capsys.readouterr().out
    assert "exists; choose another name" in message_of(lambda: site_output.output_new_site("my/cluster.yaml", ""))


def test_the_plan_of_an_earlier_run_is_read(tmp_path):
    """A run directory made before sites had files of their own names none."""
    (tmp_path / "plan.json").write_text(
        json.dumps({"format": status.FORMAT, "study": "s", "site": "slurm", "stages": []})
    )
    assert status.read_plan(tmp_path).typed_site == "slurm"
