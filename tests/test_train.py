"""Training: resumed = uninterrupted, two ranks = one rank, and what is lacking or broken does no harm."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gnnscale import files
from gnnscale.data import loader
from gnnscale.graph import Properties
from gnnscale.models import build
from gnnscale.specs import Metrics, OptimSettings, TrainedModel
from gnnscale.train import engine
from gnnscale.train.__main__ import pooled
from gnnscale.train.loop import Sums, errors
from gnnscale.train.schedule import parameter_groups, rate
from tests.corpus import ENV, TINY, directory, execute, result


def metrics(made):
    return [Metrics.model_validate_json(line) for line in (made / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(converted, tmp_path_factory):
    made = directory(tmp_path_factory.mktemp("train"), "train/undisturbed", TINY, converted)
    done = execute(made)
    assert done.returncode == 0, done.stderr
    return made


def test_training_learns_and_says_what_it_took(undisturbed):
    trained = files.read_model(undisturbed / "model.json", TrainedModel)
    lines = metrics(undisturbed)
    assert lines[-1].step == trained.steps == 20
    assert trained.structures == 40 and trained.structures_seen == 160
    assert trained.atoms_seen == 4 * trained.atoms, "four epochs see every atom four times"
    assert lines[-1].validation < lines[1].validation
    state = load_file(undisturbed / "model.safetensors")
    learnt = sum(t.numel() for n, t in state.items() if n not in ("references", "energy_scale", "force_scale")
                 and not n.endswith(".scale"))  # fmt: skip
    assert learnt == trained.parameters


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_resumed_equals_uninterrupted(converted, undisturbed, tmp_path, signum):
    made = directory(tmp_path, "train/killed", TINY, converted, checkpoint_seconds=0.001)
    command = [sys.executable, "-m", "gnnscale.train", str(made)]
    process = subprocess.Popen(command, env=os.environ | ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    checkpoints = made / "checkpoints"
    while not list(checkpoints.glob("step-00000000[4-9]")):  # somewhere in the middle
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)
    process.send_signal(signum)
    assert process.wait() == (75 if signum == signal.SIGTERM else -signum)
    assert not (made / "result.json").exists()
    newest = sorted(checkpoints.glob("step-*"))[-1]
    if signum == signal.SIGKILL:  # and the newest checkpoint is torn as well
        shard = next(newest.rglob("*.pt"))
        shard.write_bytes(shard.read_bytes()[:-100])
    done = execute(made)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stdout
    if signum == signal.SIGKILL:
        assert f"{newest.name} is torn" in done.stdout
    assert result(made).digest == result(undisturbed).digest, "bit for bit"
    plain = [line.model_dump(exclude={"seconds"}) for line in metrics(made)]
    assert plain == [line.model_dump(exclude={"seconds"}) for line in metrics(undisturbed)]


def test_two_ranks_equal_one(converted, undisturbed, tmp_path):
    """With shares of unequal numbers of atoms, or this would test nothing."""
    made = directory(tmp_path, "train/two", TINY, converted)
    done = execute(made, ranks=2)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(d / "model.safetensors") for d in (undisturbed, made))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=2e-4, atol=2e-6, msg=name)
    for a, b in zip(metrics(undisturbed), metrics(made)):
        assert a.loss == pytest.approx(b.loss, rel=1e-4)


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_equals_plain(converted, undisturbed, tmp_path, stage):
    made = directory(tmp_path, f"train/zero{stage}", TINY, converted, zero_stage=stage)
    done = execute(made, ranks=2)
    assert done.returncode == 0, done.stderr
    for a, b in zip(metrics(undisturbed), metrics(made)):
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.gradient == pytest.approx(b.gradient, rel=1e-3)


def test_gradient_forces_train_too(converted, tmp_path):
    settings = TINY.model_copy(update={"model": TINY.model.model_copy(update={"forces": "gradient"})})
    made = directory(tmp_path, "train/gradient", settings, converted)
    done = execute(made)
    assert done.returncode == 0, done.stderr
    assert metrics(made)[-1].validation < metrics(made)[1].validation


def test_a_diverged_run_is_a_result(converted, tmp_path):
    settings = TINY.model_copy(update={"optim": TINY.optim.model_copy(update={"learning_rate": 1e30, "epochs": 8.0})})
    made = directory(tmp_path, "train/diverging", settings, converted)
    done = execute(made)
    assert done.returncode == 0, done.stderr
    assert files.read_model(made / "model.json", TrainedModel).diverged
    assert result(made).values["diverged"] is True


def test_more_structures_than_there_are_is_refused(converted, tmp_path):
    made = directory(tmp_path, "train/greedy", TINY.model_copy(update={"structures": 10_000}), converted)
    done = execute(made)
    assert done.returncode == 64
    assert "10000 training structures asked for" in done.stderr and "Traceback" not in done.stderr


def test_an_undone_need_is_named(tmp_path, converted):
    made = directory(tmp_path, "train/early", TINY, {"convert/x": tmp_path / "convert" / "x"})
    done = execute(made)
    assert done.returncode == 64
    assert "needs convert/x, which is not done" in done.stderr


# ------------------------------------------------------------------------------------------------------- the parts
def batch_of(converted):
    corpus = loader.load({need.removeprefix("convert/"): path for need, path in converted.items()}, "train", 4.0)
    normalisation = pooled(corpus.cards)
    torch.manual_seed(0)
    model = build(TINY.model, 2, 12.0)
    model.set_normalisation(*normalisation)
    return model, normalisation, loader.batch(corpus, np.arange(12))


def test_missing_labels_count_for_nothing(converted):
    model, normalisation, (graphs, labels) = batch_of(converted)
    whole = errors(model, normalisation, graphs, labels)
    energy, forces = labels.energy.clone(), labels.forces.clone()
    energy[3], forces[graphs.structure == 5] = torch.nan, torch.nan
    partial = errors(model, normalisation, graphs, Properties(energy, forces))
    assert partial.structures == whole.structures - 1
    assert partial.components == whole.components - 3 * (graphs.structure == 5).sum()
    (partial.energy + partial.forces).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()), "a NaN label reaches no gradient"


def test_the_objective_is_the_mean_over_labels_in_real_units(converted):
    model, normalisation, (graphs, labels) = batch_of(converted)
    from gnnscale.models import predict

    predicted = predict(model, graphs)
    natoms = torch.bincount(graphs.structure)
    energy = ((predicted.energy - labels.energy) / natoms).abs().mean() / normalisation.energy_scale
    forces = (predicted.forces - labels.forces).abs().mean() / normalisation.force_scale
    sums = Sums(*(x.double() for x in errors(model, normalisation, graphs, labels)))
    loss, e, f = sums.objective(OptimSettings(energy_weight=2.0, force_weight=3.0))
    assert e == pytest.approx(float(energy), rel=1e-4) and f == pytest.approx(float(forces), rel=1e-4)
    assert loss == pytest.approx(2 * e + 3 * f)


def test_the_rate_rises_stays_and_falls():
    optim = OptimSettings(learning_rate=1.0, warmup=0.1, cooldown=0.4)
    rates = [rate(step, 100, optim) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[60] == 1.0
    assert rates[80] == pytest.approx(0.5) and rates[-1] == pytest.approx(1 / 40)


def test_every_parameter_is_in_one_group():
    model = build(TINY.model, 2, 12.0)
    groups = parameter_groups(model, 8, OptimSettings())
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())
    assert groups[0]["rate_factor"] == 8.0


def test_a_checkpoint_is_whole_or_it_is_not(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "a.pt").write_bytes(b"weights")
    assert not engine.checkpoint_is_whole(tmp_path), "no manifest"
    described = files.describe(tmp_path, ["state"])
    (tmp_path / "manifest.json").write_text(json.dumps({n: f.model_dump() for n, f in described.items()}))
    assert engine.checkpoint_is_whole(tmp_path)
    (tmp_path / "state" / "a.pt").write_bytes(b"weightz")
    assert not engine.checkpoint_is_whole(tmp_path)
