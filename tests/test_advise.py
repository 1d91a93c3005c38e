"""Advice from a planted study: the best of a brute search, intervals, words for what it rests on, refusals."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gnnscale import files
from gnnscale.scaling.fit import fit
from gnnscale.scaling.points import table
from gnnscale.specs import EGNNConfig, ScalingSettings, StageResult, StageSpec, TrainSettings
from tests.corpus import ROOT
from tests.test_scaling import run
from workflow import advise, estimates, show, sites, status, study
from workflow.yamlfile import Problem

ATOMS, NEIGHBOURS, EPOCHS = 20, 30, 4.0
PERLMUTTER = sites.load("perlmutter", ())


def planted(law=lambda n, d: 0.1 + 30 / n**0.4 + 8 / d**0.5, noise: float = 0.002, seed: int = 0):
    """Runs of the network itself, with its exact parameters and FLOPs."""
    rng, points = np.random.default_rng(seed), []
    for width in (16, 32, 64, 128):
        model = EGNNConfig(width=width)
        for d in (250, 500, 1000, 2000):
            seen = int(d * ATOMS * EPOCHS)
            loss = law(model.body_parameters(), d) * math.exp(noise * rng.normal())
            points.append(run(width, d, loss=loss, body_parameters=model.body_parameters(), atoms=d * ATOMS,
                              atoms_seen=seen, epochs=EPOCHS, flops=model.flops(seen, seen * NEIGHBOURS)))  # fmt: skip
    return points


def written(root, points, bootstrap=40):
    (root / "points.csv").write_text(table(points))
    files.write_model(root / "fit.json", fit(points, ScalingSettings(targets=("loss",), bootstrap=bootstrap)))
    asked = study.load("default")[1]
    files.write(root / "study.yaml", show.as_yaml(asked))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return written(tmp_path_factory.mktemp("advise"), planted())


def test_the_advice_is_the_best_of_a_brute_search(root):
    """Over every width and over data of all sizes that the budget buys, with FLOPs counted anew."""
    x = advise.advice(root, PERLMUTTER, "perlmutter", 3.0, "loss", None)
    law = next(law for law in json.loads((root / "fit.json").read_text())["laws"] if law["chosen"])["estimates"]
    e, a, alpha, b, beta = (law[name]["value"] for name in ("E", "A", "alpha", "B", "beta"))
    budget = 3 * 3600 * estimates.flops_per_second(PERLMUTTER, 1, "fp32")
    assert x["flops"] == pytest.approx(budget)
    least = math.inf
    for width in range(4, 6000, 2):
        model = EGNNConfig(width=width)
        d = budget / model.flops(ATOMS * EPOCHS, ATOMS * EPOCHS * NEIGHBOURS)
        least = min(least, e + a / model.body_parameters() ** alpha + b / d**beta)
    assert least <= x["loss"]["value"] < least * 1.0005
    model = EGNNConfig(width=x["width"])
    spent = model.flops(x["atoms_seen"], x["atoms_seen"] * NEIGHBOURS)
    assert spent == pytest.approx(budget, rel=1e-6) and x["parameters"]["value"] == model.body_parameters()
    assert x["floor"] + x["of_model"] + x["of_data"] == pytest.approx(x["loss"]["value"], rel=1e-9)


def test_intervals_hold_the_truth(root):
    """Of the planted law at the advised place, and of the best place by the planted law."""
    x = advise.advice(root, PERLMUTTER, "perlmutter", 3.0, "loss", None)
    truth = advise.Law(0.1, 30.0, 0.4, 8.0, 0.5)
    assert x["loss"]["low"] < truth.loss(x["parameters"]["value"], x["structures"]["value"]) < x["loss"]["high"]
    chosen = advise.best(truth, advise.rungs(advise.basis(root, "loss")), x["flops"])
    assert x["parameters"]["low"] <= chosen.rung.n <= x["parameters"]["high"]
    assert x["structures"]["low"] <= chosen.d <= x["structures"]["high"]


def test_twice_is_what_twice_gives(root):
    one, two = (advise.advice(root, PERLMUTTER, "perlmutter", h, "loss", None) for h in (3.0, 6.0))
    assert one["twice"]["hours"] == pytest.approx(1 - two["loss"]["value"] / one["loss"]["value"], abs=1e-12)
    assert one["twice"]["hours"] > 0 and one["twice"]["data"] > 0 and one["twice"]["parameters"] > 0


def test_few_structures_leave_more_to_the_model(root):
    x, free = (advise.advice(root, PERLMUTTER, "perlmutter", 3.0, "loss", most) for most in (5000, None))
    assert x["structures"]["value"] == 5000 and x["limited"] and not free["limited"]
    assert x["parameters"]["value"] > free["parameters"]["value"] and x["loss"]["value"] > free["loss"]["value"]
    assert "All the structures" in advise.text(x, root, PERLMUTTER, "perlmutter")


def test_the_job_ends_in_time_and_is_no_wider_than_its_batch(root):
    nodes, ranks = advise.job(PERLMUTTER, 5000.0, batch=4096)
    assert ranks == 4 * nodes == 64 and nodes == PERLMUTTER.train.nodes[1]
    assert advise.job(PERLMUTTER, 100.0, batch=4096) == (2, 8)  # 24 h and less
    assert advise.job(PERLMUTTER, 5000.0, batch=16) == (4, 16)


def test_a_far_budget_is_called_a_direction(root):
    near = advise.text(advise.advice(root, PERLMUTTER, "perlmutter", 1e-4, "loss", None), root, PERLMUTTER, "perlmutter")
    far = advise.text(advise.advice(root, PERLMUTTER, "perlmutter", 5000.0, "loss", None), root, PERLMUTTER, "perlmutter")
    assert "a direction and no plan" in far and "a direction" not in near


@pytest.fixture
def finished(root, tmp_path):
    """The study, with its largest training finished on perlmutter: four ranks, 250 seconds."""
    made = shutil.copytree(root, tmp_path / "finished")
    largest = max(planted(), key=lambda p: p.flops)
    id, folder = f"train/{largest.run}", f"train/{largest.run}-0123abcd"
    stage = {"id": id, "kind": "train", "key": "0123abcd", "folder": folder, "needs": (), "core_seconds": 1.0}
    files.write_model(made / "plan.json", status.PlanFile(study="s", site="perlmutter", stages=[stage]))
    spec = StageSpec(id=id, key="0123abcd", settings=TrainSettings(), code={}, runtime={"ranks": 4})
    done = StageResult(id=id, key="0123abcd", outputs={}, digest="d", inputs={}, started=1e9, seconds=250.0, cpu_seconds=1e3,
                       peak_bytes=1)  # fmt: skip
    files.write_model(made / folder / "spec.json", spec)
    files.write_model(made / folder / "result.json", done)
    return made, largest, folder


def test_the_measured_speed_of_a_site_is_used_and_said(finished):
    """FLOPs of the longest training over its seconds and ranks: what the budget buys follows from it."""
    made, largest, _ = finished
    x = advise.advice(made, PERLMUTTER, "perlmutter", 3.0, "loss", None)
    assert x["flops_per_second"] == pytest.approx(largest.flops / 250 / 4)
    assert x["flops"] == pytest.approx(3 * 3600 * largest.flops / 1000)
    said = advise.text(x, made, PERLMUTTER, "perlmutter")
    assert f"TFLOP/s a GPU (measured, {largest.run} on 4 ranks)" in said
    model = EGNNConfig(width=x["width"])
    assert model.flops(x["atoms_seen"], x["atoms_seen"] * NEIGHBOURS) == pytest.approx(x["flops"], rel=1e-6)


def test_a_speed_of_elsewhere_or_of_nothing_is_not_used(finished):
    """Of another site, of a training that is not done, or of one whose result is torn: then the site's file is asked."""
    made, _, folder = finished
    anvil = sites.load("anvil", ())
    x = advise.advice(made, anvil, "anvil", 3.0, "loss", None)
    assert x["speed"] == "assumed by the site's file" and x["flops_per_second"] == estimates.flops_per_second(anvil, 1, "fp32")
    for spoil in (lambda path: path.write_text("{"), lambda path: path.unlink()):
        spoil(made / folder / "result.json")
        x = advise.advice(made, PERLMUTTER, "perlmutter", 3.0, "loss", None)
        assert x["speed"] == "assumed by the site's file"
        assert x["flops_per_second"] == estimates.flops_per_second(PERLMUTTER, 1, "fp32")


def test_what_the_runs_do_not_determine_is_refused(tmp_path):
    written(tmp_path, planted(law=lambda n, d: 8 / d**0.5, seed=1))
    with pytest.raises(Problem, match=r"do not determine how loss .*B/D\^beta, which weighs no model against data"):
        advise.advice(tmp_path, PERLMUTTER, "perlmutter", 1.0, "loss", None)


def test_mistakes_are_told_in_a_screen(root, tmp_path):
    with pytest.raises(Problem, match=r"no fit\.json, so there is no law yet"):
        advise.advice(tmp_path, PERLMUTTER, "perlmutter", 1.0, "loss", None)
    with pytest.raises(Problem, match="expected more than 0"):
        advise.advice(root, PERLMUTTER, "perlmutter", -1.0, "loss", None)
    with pytest.raises(Problem, match="does not pay"):
        advise.advice(root, PERLMUTTER, "perlmutter", 1e-18, "loss", None)


def test_the_command(root):
    command = [sys.executable, ROOT / "workflow" / "run.py", "advise", root, "--gpu-hours", "5000", "--site", "perlmutter"]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "5,000 GPU-hours on perlmutter" in said.stdout and "structures, 4 epochs" in said.stdout
    program = f"""
import runpy, sys
sys.argv = {["workflow/run.py", "advise", str(root), "--gpu-hours", "10", "--json"]!r}
try:
    runpy.run_path({str(ROOT / "workflow" / "run.py")!r}, run_name="__main__")
except SystemExit:
    pass
heavy = {{"torch", "parsl", "numpy", "ase", "rich"}} & set(sys.modules)
assert not heavy, heavy
"""
    light = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert light.returncode == 0, light.stderr
    assert json.loads(light.stdout)["speed"] == "assumed by the site's file"
