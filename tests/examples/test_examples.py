"""Every example runs: scripts as they are typed, studies, the script of a data set, a custom model, the notebook's cells."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gnnscale.contract import datasets
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.contract.files import read_model

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def python(*words, where=ROOT):
    environment = ENVIRONMENT | {"PYTHONPATH": str(where if where != EXAMPLES else ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=where, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def copper(tmp_path_factory):
    """Return the folder own_data_set with the files that its script makes."""
    folder = tmp_path_factory.mktemp("examples") / "own_data_set"
    shutil.copytree(EXAMPLES / "own_data_set", folder)
    assert "160 frames" in python(folder / "make_data.py")
    return folder


def test_fit_your_own_csv(tmp_path):
    said = python(EXAMPLES / "fit_your_own_csv.py")
    law = re.search(r"α = ([\d.]+) \[([\d.]+), ([\d.]+)\]", said)
    value, low, high = map(float, law.groups())
    assert low < value < high and 0.4 < value < 0.7
    beyond = re.search(r"^N = 1,478,784, D = 31,800: loss ([\d.]+) \[([\d.]+), ([\d.]+)\]$", said, re.M)
    loss, low, high = map(float, beyond.groups())
    seen = np.loadtxt(EXAMPLES / "runs.csv", delimiter=",", skiprows=2)
    assert low <= loss <= high < seen[:, 2].min()


def test_fit_your_own_csv_takes_another_file(tmp_path):
    n, d = (x.ravel() for x in np.meshgrid([1e3, 1e4, 1e5, 1e6], [1e2, 1e3, 1e4, 1e5]))
    rows = [f"{a:g},{b:g},{0.1 + 20 / a**0.5 + 5 / b**0.4:.8g}" for a, b in zip(n, d, strict=True)]
    (tmp_path / "mine.csv").write_text("params,tokens,val_loss\n" + "\n".join(rows) + "\n")
    said = python(EXAMPLES / "fit_your_own_csv.py", tmp_path / "mine.csv")
    assert re.search(r"α = 0\.(5|499|500)", said) and re.search(r"β = 0\.(4|399|400)", said)


def test_own_data_set_needs_no_code(copper, tmp_path):
    text = (copper / "study.yaml").read_text()
    (copper / "study.yaml").write_text(text.replace("examples/own_data_set/", f"{copper}/"))
    python("workflow/run.py", "run", "--study", copper / "study.yaml", "--root", tmp_path / "run")
    card = read_model(next((tmp_path / "run" / "data").glob("copper-*")) / "card.json", ShardCard)
    assert sum(split.structures for split in card.counts.values()) == 160
    assert sum(split.groups for split in card.counts.values()) == 40 and set(card.elements) == {"Cu"}
    assert "Our copper" in (tmp_path / "run" / "report.html").read_text()
    assert len((tmp_path / "run" / "points.csv").read_text().splitlines()) == 1 + 4


def test_own_data_set_script(copper, tmp_path, monkeypatch):
    """As a copy in datasets/, by the command that converts without a study."""
    for script in (ROOT / "datasets").glob("*.py"):
        (tmp_path / script.name).symlink_to(script)
    shutil.copy(copper / "npz.py", tmp_path)
    monkeypatch.setattr("gnnscale.contract.datasets.DATASETS", tmp_path)
    script = datasets.load_script("npz")
    monkeypatch.setattr(sys, "argv", ["npz.py", str(copper / "copper.npz"), str(tmp_path / "out")])
    from gnnscale.stages import dataset_script

    with pytest.raises(SystemExit) as end:
        dataset_script.main(vars(script))
    assert end.value.code == 0
    card = read_model(tmp_path / "out" / "card.json", ShardCard)
    assert sum(split.structures for split in card.counts.values()) == 160
    assert sum(split.groups for split in card.counts.values()) == 40


def test_both_files_hold_the_same_structures(copper, monkeypatch, tmp_path):
    """The script yields the structures that the extended-XYZ file holds."""
    shutil.copy(copper / "npz.py", tmp_path)
    monkeypatch.setattr("gnnscale.contract.datasets.DATASETS", tmp_path)
    npz = datasets.load_script("npz")
    monkeypatch.undo()
    extxyz = datasets.load_script("extxyz")
    one, two = (
        [s for piece in script.pieces(options) for s in script.structures(options, piece, pytest.fail)]
        for script, options in [
            (npz, npz.Options(raw=str(copper / "copper.npz"))),
            (extxyz, extxyz.Options(raw=str(copper / "copper.xyz"), group="material")),
        ]
    )
    assert len(one) == len(two) == 160
    for a, b in zip(one, two, strict=True):
        assert a.group == b.group and abs(a.energy - b.energy) < 1e-6
        np.testing.assert_allclose(a.forces, b.forces, atol=1e-6)
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-6)


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """Return a copy of this checkout in which the two files of the custom model lie where they belong."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in ("gnnscale", "workflow", "datasets", "sites", "tests", "examples"):
        shutil.copytree(
            ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "results", "copper.*")
        )
    shutil.copy(ROOT / "pyproject.toml", root)
    for room in ("architectures", "models"):
        shutil.copy(root / "examples" / "custom_model" / room / "schnet.py", root / "gnnscale" / room)
    return root


def test_custom_model_passes_the_physics_tests_by_being_there(extended):
    said = python(
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-k",
        "schnet",
        "tests/gnnscale/models/test_physics.py",
        where=extended,
    )
    assert int(re.search(r"(\d+) passed", said)[1]) >= 8 and "failed" not in said


def test_custom_model_counts_exactly(extended):
    said = dict(line.split() for line in python("tests/examples/schnet_counts.py", where=extended).splitlines())
    assert float(said["parameters"]) == 0 and float(said["flops"]) == 0
    assert float(said["memory"]) == pytest.approx(1, abs=0.05)


def test_custom_model_goes_through_a_study(extended, tmp_path):
    study = extended / "examples" / "custom_model" / "study.yaml"
    python("workflow/run.py", "run", "--study", study, "--root", tmp_path, where=extended)
    header, *rows = (tmp_path / "points.csv").read_text().splitlines()
    assert len(rows) == 4 and {row.split(",")[header.split(",").index("model")] for row in rows} == {"schnet"}
    assert "A network of our own" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks_run(path):
    cells = json.loads(path.read_text())["cells"]
    assert all(not cell.get("outputs") for cell in cells), "commit notebooks without outputs"
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    said = python("-c", code, where=EXAMPLES)
    assert "82 runs" in said and "holds within 3.6%" in said and "alpha = 0.549" in said


def test_every_example_is_listed():
    listed = (EXAMPLES / "README.md").read_text()
    committed = subprocess.run(["git", "ls-files", "examples"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in committed.stdout.split():
        if not name.endswith(("README.md", ".gitignore", "runs.csv")):
            assert name.removeprefix("examples/") in listed, f"{name} is not in examples/README.md"
