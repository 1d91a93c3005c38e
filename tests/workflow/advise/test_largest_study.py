"""Advice from a planted study: the best of a brute search, intervals, words for what it rests on, refusals."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.contract import files
from gnnscale.contract.errors import UserError
from gnnscale.contract.results import StageResult
from gnnscale.contract.settings import OptimSettings, ScalingSettings, TrainSettings
from gnnscale.contract.stage_spec import StageSpec
from gnnscale.scaling.analysis import fit_study
from gnnscale.scaling.points import to_csv
from tests.gnnscale.scaling.test_analysis import run
from tests.support.corpus import ROOT
from workflow.advise import advice_text, largest_study
from workflow.advise.basis import LossLaw, read_basis
from workflow.cli import output
from workflow.config import site_files, study, study_files, sweeps
from workflow.plan import build, cost, memory_fit
from workflow.run_directory import status

ATOMS, NEIGHBOURS, EPOCHS = 20, 30, 4.0
PERLMUTTER = site_files.load("perlmutter", ())


WIDTHS, SIZES = [16, 32, 64, 128], [250, 500, 1000, 2000]


def asked(**changes):
    """Return the default study with the grid of `planted`, all runs of which differ from `train` in `changes`."""
    over = {"model.width": WIDTHS, "structures": SIZES}
    return study_files.load("default")[1].model_copy(
        update={"sweeps": [study.Sweep(name="grid", over=over, cases=[changes])]}
    )


def planted(law=lambda n, d: 0.1 + 30 / n**0.4 + 8 / d**0.5, noise: float = 0.002, seed: int = 0, of=None):
    """Return runs of the network itself, with its exact parameters and FLOPs."""
    rng, points = np.random.default_rng(seed), []
    for each in sweeps.expand_runs(of or asked()):
        model, d = each.settings.model, each.settings.structures
        seen = int(d * ATOMS * EPOCHS)
        loss = law(model.body_parameters(), d) * math.exp(noise * rng.normal())
        points.append(
            run(
                model.width,
                d,
                run=each.name,
                model=model.label,
                loss=loss,
                atoms=d * ATOMS,
                body_parameters=model.body_parameters(),
                atoms_seen=seen,
                epochs=EPOCHS,
                flops=model.flops(seen, seen * NEIGHBOURS),
            )
        )
    return points


def written(root, points, bootstrap=40, of=None):
    (root / "points.csv").write_text(to_csv(points))
    files.write_model(root / "fit.json", fit_study(points, ScalingSettings(targets=("loss",), bootstrap=bootstrap)))
    files.write(root / "study.yaml", output.to_yaml(of or asked()))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return written(tmp_path_factory.mktemp("advise"), planted())


def advised(root, hours, most=None, site=PERLMUTTER):
    return largest_study.compute_advice(root, site, "perlmutter", hours, "loss", most)


def test_the_advice_is_the_best_of_a_brute_search(root):
    """Over every width and over data of all sizes that the budget buys on one node, with time counted anew."""
    x = advised(root, 3.0)
    law = next(law for law in json.loads((root / "fit.json").read_text())["laws"] if law["chosen"])["estimates"]
    e, a, alpha, b, beta = (law[name]["value"] for name in ("E", "A", "alpha", "B", "beta"))
    rate, least = 4 * cost.flops_per_second(PERLMUTTER, 1, "fp32"), math.inf

    def each(model):  # seconds of a structure: its share of steps of 12 ms for 16, and its FLOPs
        return EPOCHS * 0.012 / 16 + model.flops(ATOMS * EPOCHS, ATOMS * EPOCHS * NEIGHBOURS) / rate

    for width in range(4, 6000, 2):
        model = EGNNConfig(width=width)
        least = min(least, e + a / model.body_parameters() ** alpha + b / ((3 * 900 - 4) / each(model)) ** beta)
    assert least <= x["loss"]["value"] < least * 1.0005
    model = EGNNConfig(width=x["width"])
    assert 4 + each(model) * x["structures"]["value"] == pytest.approx(3 * 900, rel=1e-6) and x["ranks"] == 4
    assert x["parameters"]["value"] == model.body_parameters()
    assert x["flops"] == pytest.approx(model.flops(x["atoms_seen"], x["atoms_seen"] * NEIGHBOURS))
    assert x["floor"] + x["of_model"] + x["of_data"] == pytest.approx(x["loss"]["value"], rel=1e-9)


@pytest.mark.parametrize("hours", [0.1, 3.0, 97.0, 700.0, 5000.0])
def test_it_takes_as_long_as_plan_says(root, hours):
    x = advised(root, hours)
    d = x["structures"]["value"]
    settings = TrainSettings(
        model=EGNNConfig(width=x["width"]), optim=OptimSettings(epochs=EPOCHS), structures=round(d)
    )
    time, fits = build.fit_into_memory(settings, [cost.SourceSize(d / 2, ATOMS, NEIGHBOURS)] * 5, PERLMUTTER)
    assert x["hours"] == pytest.approx(time / 3600, rel=0.02) and x["ranks"] == fits.runtime.ranks == 4 * x["nodes"]
    assert 0.95 * hours < x["ranks"] * time / 3600 < 1.001 * hours
    assert x["ranks"] == 16 or x["hours"] < 24
    share = 1 - x["flops"] / x["flops_per_second"] / x["ranks"] / time
    assert x["fixed"] == pytest.approx(share, rel=1e-3) and share > 0.05


def test_settings_are_those_of_the_runs(tmp_path):
    """Not those of `train`, which a sweep has changed: form, batch and cutoff decide about neighbours, memory and time."""
    of = asked(**{"model.form": "edge", "model.radial": 6, "optim.batch": 64, "model.cutoff": 4.0})
    known = read_basis(written(tmp_path, planted(of=of), of=of), "loss", PERLMUTTER, "perlmutter")
    assert known.neighbours == pytest.approx(NEIGHBOURS) and known.settings.optim.batch == 64
    assert known.settings.model == EGNNConfig(form="edge", radial=6, width=128, cutoff=4.0)
    assert advised(tmp_path, 3.0)["model"] == "egnn-edge"


@pytest.mark.parametrize(("changes", "words"), [({"optim.batch": 8}, "has no such run"), ({}, "has egnn-edge there")])
def test_a_study_that_was_changed_since_is_told(tmp_path, changes, words):
    of = asked(**changes)
    edge = of.train.model_copy(update={"model": of.train.model.model_copy(update={"form": "edge"})})
    written(tmp_path, planted(), of=of if changes else of.model_copy(update={"train": edge}))
    with pytest.raises(UserError, match=f"from w128-d3-n2000 of egnn-deferred, but study.yaml {words}"):
        advised(tmp_path, 3.0)


def test_intervals_hold_the_truth(root):
    """Compare the planted law at the advised place with its value at its own best place."""
    x, known = advised(root, 3.0), read_basis(root, "loss", PERLMUTTER, "perlmutter")
    truth = LossLaw(0.1, 30.0, 0.4, 8.0, 0.5)
    assert x["loss"]["low"] < truth.loss(x["parameters"]["value"], x["structures"]["value"]) < x["loss"]["high"]
    right = largest_study.choose_size(truth, largest_study.list_model_sizes(known)[0], 3.0, None, known)
    assert x["parameters"]["low"] <= right.size.n <= x["parameters"]["high"]
    assert x["structures"]["low"] <= right.d <= x["structures"]["high"]


def test_twice_is_what_twice_gives(root):
    one, two = (advised(root, h) for h in (3.0, 6.0))
    assert one["twice"]["hours"] == pytest.approx(1 - two["loss"]["value"] / one["loss"]["value"], abs=1e-12)
    assert one["twice"]["hours"] > 0 and one["twice"]["data"] > 0 and one["twice"]["parameters"] > 0


def test_few_structures_leave_more_to_the_model(root):
    """As much as brings the loss within a hundredth of the least, and no more than fits into memory."""
    x, free, more = advised(root, 3.0, 5000), advised(root, 3.0), advised(root, 1e5, 5000)
    assert x["structures"] == {"value": 5000, "low": None, "high": None} and x["limited"] and not free["limited"]
    assert x["loss"]["value"] > free["loss"]["value"]
    assert "All existing structures" in advice_text.format_advice(x, root, PERLMUTTER, "perlmutter")
    known = read_basis(root, "loss", PERLMUTTER, "perlmutter")
    losses = {}
    for model in EGNNConfig().at_all_widths():
        width, settings = model.width, TrainSettings(model=model, optim=OptimSettings(epochs=EPOCHS))
        if not memory_fit.choose_levers(settings, 5, ATOMS, ATOMS * NEIGHBOURS, PERLMUTTER, 16).refusal:
            losses[width] = known.law.loss(settings.model.body_parameters(), 5000)
    near = [width for width, loss in losses.items() if loss <= 1.01 * min(losses.values())]
    assert more["width"] == near[0] < max(losses) and more["ranks"] * more["hours"] < 100


def test_where_the_looking_ends_is_no_best(root, monkeypatch):
    wide = advised(root, 9e11)
    assert (
        wide["end"] == "widest that fits into memory"
        and wide["parameters"]["low"] is wide["structures"]["high"] is None
    )
    said = advice_text.format_advice(wide, root, PERLMUTTER, "perlmutter")
    assert (
        f"width {wide['width']:,} (the widest that fits into memory): N = {wide['parameters']['value']:.3g} body"
        in said
    )
    for widths, hours, end in (([16, 32], 1e3, "widest looked at"), ([4000, 8000], 1.0, "narrowest looked at")):
        monkeypatch.setattr(
            EGNNConfig, "at_all_widths", lambda self, widths=widths: [self.with_width(w) for w in widths]
        )
        x = advised(root, hours)
        assert x["end"] == end and x["parameters"] == {"value": x["parameters"]["value"], "low": None, "high": None}


def test_the_job_is_no_wider_than_its_batch(root):
    known = read_basis(root, "loss", PERLMUTTER, "perlmutter")
    assert largest_study.allowed_ranks(known) == [4, 8, 16]
    optim = known.settings.optim.model_copy(update={"batch": 4096})
    large = known._replace(settings=known.settings.model_copy(update={"optim": optim}))
    assert largest_study.allowed_ranks(large) == [4, 8, 16, 32, 64]


def test_a_far_budget_is_called_a_direction(root):
    """And what is to be trained first is ten times the largest."""
    far = advised(root, 5000.0)
    said = advice_text.format_advice(far, root, PERLMUTTER, "perlmutter")
    near = advised(root, far["next_hours"])
    assert f"a direction, not a plan. First train what {far['next_hours']:.3g} GPU-hours buy" in said
    assert near["beyond"]["flops"] == pytest.approx(largest_study.MAX_EXTRAPOLATION, rel=0.01)
    assert "a direction" not in advice_text.format_advice(
        advised(root, 0.99 * far["next_hours"]), root, PERLMUTTER, "perlmutter"
    )


@pytest.fixture
def finished(root, tmp_path):
    """Return the study with its largest training finished on perlmutter: four ranks, 250 seconds."""
    made = shutil.copytree(root, tmp_path / "finished")
    largest = max(planted(), key=lambda p: p.flops)
    id, folder = f"train/{largest.run}", f"train/{largest.run}-0123abcd"
    stage = {"id": id, "kind": "train", "key": "0123abcd", "folder": folder, "needs": (), "core_seconds": 1.0}
    files.write_model(made / "plan.json", status.PlanFile(study="s", site="perlmutter", stages=[stage]))
    spec = StageSpec(id=id, key="0123abcd", settings=TrainSettings(), code={}, runtime={"ranks": 4})
    done = StageResult(
        id=id,
        key="0123abcd",
        outputs={},
        digest="d",
        inputs={},
        started=1e9,
        seconds=250.0,
        cpu_seconds=1e3,
        peak_bytes=1,
    )
    files.write_model(made / folder / "spec.json", spec)
    files.write_model(made / folder / "result.json", done)
    return made, largest, folder


def test_the_measured_speed_of_a_site_is_used_and_said(finished):
    """FLOPs of the longest training over its seconds and ranks: what the budget buys follows from it."""
    made, largest, _ = finished
    x = advised(made, 3.0)
    assert x["flops_per_second"] == pytest.approx(largest.flops / 250 / 4) and x["fixed"] == pytest.approx(0)
    assert x["flops"] == pytest.approx(3 * 3600 * largest.flops / 1000)
    said = advice_text.format_advice(x, made, PERLMUTTER, "perlmutter")
    assert f"TFLOP/s per GPU (measured, {largest.run} on 4 ranks)" in said
    model = EGNNConfig(width=x["width"])
    assert model.flops(x["atoms_seen"], x["atoms_seen"] * NEIGHBOURS) == pytest.approx(x["flops"], rel=1e-6)


def test_a_speed_of_elsewhere_or_of_nothing_is_not_used(finished):
    """Another site, a training that is not done and a torn result leave the rate of the site's file."""
    made, _, folder = finished
    anvil = site_files.load("anvil", ())
    x = largest_study.compute_advice(made, anvil, "anvil", 3.0, "loss", None)
    assert x["speed"] == "assumed by the site's file" and x["flops_per_second"] == cost.flops_per_second(
        anvil, 1, "fp32"
    )
    for spoil in (lambda path: path.write_text("{"), lambda path: path.unlink()):
        spoil(made / folder / "result.json")
        x = advised(made, 3.0)
        assert x["speed"] == "assumed by the site's file"
        assert x["flops_per_second"] == cost.flops_per_second(PERLMUTTER, 1, "fp32")


def test_the_speed_of_half_a_training_is_not_used(finished):
    """One that began where a shorter one had come to has all its FLOPs, but not all of its seconds."""
    made, _, folder = finished
    spec = files.read_model(made / folder / "spec.json", StageSpec)
    shared = spec.model_copy(update={"runtime": spec.runtime.model_copy(update={"shorter": ("../other",)})})
    files.write_model(made / folder / "spec.json", shared)
    assert advised(made, 3.0)["speed"] == "assumed by the site's file"


@pytest.mark.slow
def test_what_the_runs_do_not_determine_is_refused(tmp_path):
    written(tmp_path, planted(law=lambda n, d: 8 / d**0.5, seed=1))
    with pytest.raises(
        UserError, match=r"do not determine how loss .*B/D\^beta, which does not weigh model against data"
    ):
        largest_study.compute_advice(tmp_path, PERLMUTTER, "perlmutter", 1.0, "loss", None)


def test_mistakes_are_reported_in_a_line(root, tmp_path):
    with pytest.raises(UserError, match=r"no fit\.json, so there is no law yet"):
        largest_study.compute_advice(tmp_path, PERLMUTTER, "perlmutter", 1.0, "loss", None)
    with pytest.raises(UserError, match="expected more than 0"):
        largest_study.compute_advice(root, PERLMUTTER, "perlmutter", -1.0, "loss", None)
    with pytest.raises(UserError, match=r"not enough to train even the smallest model .* for one batch"):
        largest_study.compute_advice(root, PERLMUTTER, "perlmutter", 1e-18, "loss", None)
    for hours in (1e300, math.inf, math.nan):
        with pytest.raises(UserError, match=r"--gpu-hours: found .* less than"):
            largest_study.compute_advice(root, PERLMUTTER, "perlmutter", hours, "loss", None)
    for most in (0.0, -3.0, math.nan, math.inf):
        with pytest.raises(UserError, match=r"--structures: found .* expected 1 or more"):
            largest_study.compute_advice(root, PERLMUTTER, "perlmutter", 1.0, "loss", most)


@pytest.mark.slow
def test_the_command(root):
    command = [
        sys.executable,
        ROOT / "workflow" / "run.py",
        "advise",
        root,
        "--gpu-hours",
        "5000",
        "--site",
        "perlmutter",
    ]
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
