"""A new architecture is two files: a copy of this tree gets one more, and everything there is works with it.

The two files lie in tests/support/third_architecture/. No other file of the copy is touched.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.support.corpus import ROOT

FILES = ROOT / "tests" / "support" / "third_architecture"
COPIED = ("gnnscale", "workflow", "datasets", "sites", "tests", "containers")
STUDY = {
    "title": "Three architectures",
    "data": [{"name": "bulk", "dataset": "generated", "options": {"source": "bulk", "structures": 40}}],
    "split": {"validation": 0.1, "test": 0.25},
    "train": {
        "model": {"kind": "toy", "width": 8, "depth": 2, "cutoff": 4.0, "filters": 4},
        "optim": {"epochs": 1, "batch": 8},
    },
    "levers": {"model": {"kind": "toy", "width": 8, "depth": 2, "cutoff": 4.0}, "batch": 8, "steps": 1},
    "sweeps": [
        {"name": "one", "over": {"model.width": [8]}},
        {"name": "size", "over": {"model.width": [{"parameters": 672}], "model.kind": ["egnn", "toy"]}},
    ],
    "scaling": {"bootstrap": 20},
}
KEYS = """
import json, sys
from pathlib import Path
from workflow.config import site_files, study_files
from workflow.plan.build import build_stages
for name in ("default", "paper-generated"):
    stages = build_stages(*study_files.load(name), site_files.load("local"), Path("runs"))
    print(json.dumps({id: stage.key for id, stage in stages.items()}))
"""


def copied(folder):
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)


def python(folder, *words):
    """Run Python in the copy, with the packages of the copy first on its path."""
    env = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Return the copy with the two files, and the keys of two studies from before they came."""
    folder = tmp_path_factory.mktemp("tree")
    copied(folder)
    before = python(folder, "-c", KEYS)
    for room in ("architectures", "models"):
        shutil.copy(FILES / room / "toy.py", folder / "gnnscale" / room / "toy.py")
    (folder / "toy.yaml").write_text(yaml.safe_dump(STUDY))
    return folder, before


def test_no_key_of_another_architecture_changes(tree):
    folder, before = tree
    assert python(folder, "-c", KEYS) == before and before.count("train/") > 30


def test_a_study_of_it_is_planned_trained_evaluated_fitted_and_reported(tree):
    folder, _ = tree
    words = (str(folder / "workflow" / "run.py"), "--study", "toy.yaml", "--root", str(folder / "run"))
    assert "train/w8-d2-nall" in python(folder, *words, "plan")
    assert "11 of 11 stages done" in python(folder, *words)
    trained = {path.parent.name.rsplit("-", 1)[0]: path for path in (folder / "run" / "train").glob("*/model.json")}
    assert set(trained) == {"w8-d2-nall", "w16-d2-nall", "egnn-w6-d2-nall"}
    for name, path in trained.items():
        model, code = json.loads(path.read_text()), json.loads((path.parent / "spec.json").read_text())["code"]
        kind = "egnn" if name.startswith("egnn") else "toy"
        assert model["model"]["kind"] == kind and not model["diverged"]
        assert {f"gnnscale/{room}/{kind}.py" for room in ("architectures", "models")} <= set(code)
        assert not any(other in file for file in code for other in {"egnn", "toy"} - {kind})
    points = (folder / "run" / "points.csv").read_text()
    assert ",toy,16,2," in points and ",egnn-deferred,6,2," in points
    page = (folder / "run" / "report.html").read_text()
    assert "toy, width 8, depth 2, direct forces" in page


def test_an_unknown_kind_is_answered_with_the_known(tree):
    folder, _ = tree
    (folder / "tyo.yaml").write_text(yaml.safe_dump(STUDY).replace("kind: toy", "kind: tyo"))
    words = (str(folder / "workflow" / "run.py"), "plan", "--study", "tyo.yaml")
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2 and "model.kind: found 'tyo', expected one of " in done.stderr
    assert "; did you mean 'toy'?" in done.stderr


def test_it_keeps_the_physics_contract_and_is_counted_exactly(tree):
    folder, _ = tree
    words = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "toy", "tests/gnnscale/models")
    assert python(folder, *words).count(".") > 25
