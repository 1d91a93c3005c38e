"""The command line, told wrong things: one screen, exit code 2, the nearest known name, no traceback."""

import subprocess
import sys
import time

import pytest

from tests.corpus import ROOT

STUDY = """title: t
data: [{name: a, dataset: generated, options: {source: bulk, structures: 10}}]
sweeps: [{name: s}]
"""


def call(*words, cwd=ROOT):
    command = [sys.executable, str(ROOT / "workflow" / "run.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=30)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "--study", "defalt"], "did you mean 'default'?"),
        (["plan", "--site", "locl"], "did you mean 'local'?"),
        (["plan", "--study", "nowhere/x.yaml"], "no such file or directory"),
        (["status", "--root", "/nonexistent"], "no study has been run here"),
        (["report", "--root", "/nonexistent"], "not made yet"),
        (["explain", "train/w56-d3-n2601"], "did you mean 'train/w56-d3-n2600'?"),
        (["sites", "show", "perlmuter"], "no site 'perlmuter'"),
        (["clean", "--root", "/nonexistent", "--all", "--yes"], "nothing is removed"),
        (["plan", "--root", "/dev/null/x"], "not a directory"),
    ],
)
def test_wrong_words(words, message):
    done = call(*words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 20


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("source: bulk", "source: bluk", "found 'bluk'; did you mean 'bulk'?"),
        ("structures: 10", "structurs: 10", "unknown name 'structurs'; did you mean 'structures'?"),
        (
            "title: t",
            "title: t\ntrain: {model: {kind: egnnn}}",
            "mine.yaml:2: train.model.kind: found 'egnnn'; did you mean",
        ),
        (
            "{name: s}",
            "{name: s, over: {model.widht: [1]}}",
            "mine.yaml:3: sweep 's': nothing is called 'model.widht'; did you mean 'model.width'?",
        ),
        (
            "{name: s}",
            "{name: s, over: {model.width: []}}",
            "mine.yaml:3: sweeps.0.over.model.width: found []: list should have at least 1 item",
        ),
        ("name: a", "name: ../a", "data.0.name: found '../a'"),
    ],
)
def test_wrong_studies(tmp_path, old, new, message):
    path = tmp_path / "mine.yaml"
    path.write_text(STUDY.replace(old, new))
    done = call("plan", "--study", str(path), "--root", str(tmp_path / "run"))
    assert done.returncode == 2, done.stdout
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists(), "a plan writes nothing"


def test_a_directory_that_cannot_be_made():
    done = call("run", "--study", "smoke", "--root", "/dev/null/x")
    assert done.returncode == 2
    assert "/dev/null" in done.stderr and "Traceback" not in done.stderr


def test_a_reader_who_has_had_enough():
    done = subprocess.run(
        f"{sys.executable} workflow/run.py plan --study paper | head -1",
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stderr == ""


def test_every_site_is_valid():
    done = call("sites", "validate")
    assert done.returncode == 0 and "sites/local.yaml: valid" in done.stdout


def test_a_plan_of_a_large_study_is_quick():
    """The promise is half a second; ten times that on a busy machine would be a mistake and not noise."""
    began = time.monotonic()
    assert call("plan", "--study", "paper").returncode == 0
    assert time.monotonic() - began < 5


def test_what_cannot_fit_is_refused_before_anything_starts(tmp_path):
    path = tmp_path / "huge.yaml"
    path.write_text(STUDY.replace("{name: s}", "{name: s, over: {model.width: [200000]}}"))
    done = call("run", "--study", str(path), "--root", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "1 training(s) do not fit" in done.stderr and "weights, gradients and moments" in done.stderr
    assert not (tmp_path / "run" / "data").exists()
