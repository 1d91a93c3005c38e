"""The compiled library learns as DeepSpeed does, step by step, and without importing it; what cannot use it says why."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from gnnscale.contract.stage_spec import Runtime
from gnnscale.data.loading.corpus import load_corpus, make_batch
from gnnscale.models.registry import build
from gnnscale.native.library import open_library, reason_not_available
from gnnscale.train import process_group
from gnnscale.train.deepspeed_engine import DeepSpeedEngine
from gnnscale.train.engine_choice import make_engine
from gnnscale.train.native_engine import NativeEngine
from gnnscale.train.normalisation import pool_normalisation
from gnnscale.train.schedule import group_parameters, learning_rate
from tests.support.corpus import ENV, read_result, run_stage
from tests.support.training import (
    DEEPSPEED,
    assert_equal,
    change_settings,
    prepare_training,
    train_here,
)

pytestmark = pytest.mark.usefixtures("environment")
needs_library = pytest.mark.skipif(open_library(torch.float32) is None, reason=reason_not_available())
STEPS, BATCH = 100, 8
NOISE = 1e-7  # of float32, relative to a weight
CASES = {  # with smooth losses: at a kink, a rounding error decides on the sign of a derivative
    "deferred direct": ({}, {"loss": "l2"}),
    "edge gradient": ({"form": "edge", "forces": "gradient"}, {"stress_weight": 0.3, "loss": "huber"}),
    "deferred gradient": ({"forces": "gradient", "width": 20, "radial": 5}, {"loss": "huber", "ema": 0.9, "clip": 0.5}),
    "muon": ({"form": "edge", "source_heads": True}, {"loss": "l2", "optimizer": "muon"}),
}


def make_model(settings, corpus):
    torch.manual_seed(0)
    model = build(settings.model, len(corpus.names), corpus.edges / corpus.atoms)
    model.set_normalisation(*pool_normalisation(corpus.cards, forces=None))
    return model


def take_steps(engine, corpus, optim, noise: float) -> list[dict[str, torch.Tensor]]:
    """Return the weights after each step, and the loss before it; before it all weights get some noise."""
    seen, learnt = [], {name.partition("|")[0] for name, _ in engine.layout()}
    for number in range(STEPS):
        if noise:
            with torch.no_grad():
                for p in engine.named.values():
                    p.mul_(1 + noise * torch.randn_like(p))
        chosen = (np.arange(BATCH) + number * BATCH) % len(corpus)
        batch = make_batch(corpus, np.sort(chosen))
        counts = corpus.labels[chosen].sum(0, dtype=np.int64)
        sums = engine.learn([lambda batch=batch: batch], counts)
        engine.step(learning_rate(number, STEPS, optim), number + 1)
        with engine.averaged():
            weights = {name: t.detach().clone() for name, t in engine.weights().items() if name in learnt}
        seen.append(weights | {"loss": sums.clone()})
    return seen


def distances(one, other) -> np.ndarray:
    """Return the distance between the weights of two trainings after each step."""
    names = [name for name in one[0] if name != "loss"]
    squares = [[float((a[n] - b[n]).double().square().sum()) for n in names] for a, b in zip(one, other, strict=True)]
    return np.sqrt(np.sum(squares, axis=1))


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_step_is_that_of_deepspeed_up_to_rounding(converted, name):
    """Rounding grows from step to step: so it is compared with what noise of its size grows to."""
    process_group.join_ranks(1)
    model, optim = CASES[name]
    settings = change_settings(model=model, optim=optim)
    sources = {need.removeprefix("convert/"): path for need, path in converted.items()}
    corpus = load_corpus(sources, "train", settings.model.cutoff)

    def trained(native: bool, noise: float = 0.0):
        made = make_model(settings, corpus)
        groups = group_parameters(made, settings.model.rate_width, settings.optim)
        with pytest.MonkeyPatch.context() as patch:
            if not native:
                patch.setenv(*next(iter(DEEPSPEED.items())))
            engine, _ = make_engine(made, groups, settings.optim, Runtime())
        assert isinstance(engine, NativeEngine if native else DeepSpeedEngine)
        return take_steps(engine, corpus, settings.optim, noise)

    expected, found, shaken = trained(False), trained(True), trained(False, NOISE)
    torch.testing.assert_close(found[0]["loss"], expected[0]["loss"], rtol=5e-6, atol=0)
    ours, noise = distances(expected, found), distances(expected, shaken)
    assert (ours <= 20 * np.maximum.accumulate(noise)).all(), (ours / np.maximum.accumulate(noise)).max()


PROGRAM = """
import sys
from pathlib import Path
from gnnscale.contract import stage_run
from gnnscale.stages import train
train.main(stage_run.Run(Path(sys.argv[1])))
print(*sorted({"deepspeed", "torch._dynamo", "torch._inductor"} & set(sys.modules)))
sys.stdout.flush()
import os
os._exit(0)
"""


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize("optim", [{}, {"optimizer": "muon", "ema": 0.9}], ids=["adamw", "muon"])
def test_what_takes_seconds_to_import_is_not_imported(converted, tmp_path, optim):
    made = prepare_training(tmp_path, converted, optim=optim)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(made)], env=os.environ | ENV, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "", done.stdout


@needs_library
def test_a_checkpoint_of_one_engine_is_continued_by_the_other(converted, tmp_path, monkeypatch, capsys):
    settings = {"model": {"forces": "gradient"}, "optim": {"ema": 0.9}}
    whole = train_here(prepare_training(tmp_path, converted, "whole", **settings))
    made = prepare_training(tmp_path, converted, "made", **settings)
    train_here(made, stop_at=5)
    assert "taken by DeepSpeed" not in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setenv(*next(iter(DEEPSPEED.items())))
        train_here(made, stop_at=12)
    said = capsys.readouterr().out
    assert "steps are taken by DeepSpeed and PyTorch (no native library: it is switched off" in said
    assert "the steps until here were taken by native: the same up to rounding" in said
    train_here(made)
    assert "the steps until here were taken by DeepSpeed: the same" in capsys.readouterr().out
    assert_equal(whole, made)


@pytest.mark.parametrize(
    ("changes", "runtime", "reason"),
    [
        ({"optim": {"precision": "bf16"}}, {}, "precision bf16"),
        ({}, {"zero_stage": 1}, "zero_stage 1"),
        ({"model": {"form": "paper"}}, {}, "there is no block for linalg_vector_norm"),
    ],
    ids=["bf16", "zero", "paper"],
)
def test_what_the_library_cannot_do_is_said(converted, tmp_path, capsys, changes, runtime, reason):
    train_here(prepare_training(tmp_path, converted, runtime=runtime, **changes), stop_at=2)
    said = capsys.readouterr().out
    expected = reason if open_library(torch.float32) or "form" not in changes.get("model", {}) else "no native library"
    assert f"steps are taken by DeepSpeed and PyTorch ({expected}" in said


@pytest.mark.slow
def test_the_result_records_what_took_the_steps(converted, tmp_path):
    made = prepare_training(tmp_path, converted, optim={"epochs": 0.2})
    assert run_stage(made).returncode == 0
    native = open_library(torch.float32) is not None
    recorded = read_result(made).provenance["step"]
    assert recorded.startswith("the native library for" if native else "DeepSpeed and PyTorch (no native library")


@needs_library
def test_the_state_is_whole_and_by_name(converted, tmp_path):
    """Both engines write the same names and shapes, in the order of the parameters."""
    process_group.join_ranks(1)
    for name in ("deferred gradient", "muon"):
        model, optim = CASES[name]
        settings = change_settings(model=model, optim=optim)
        made = [build(settings.model, 2, 10.0) for _ in range(2)]
        groups = [group_parameters(each, settings.model.rate_width, settings.optim) for each in made]
        native, _ = make_engine(made[0], groups[0], settings.optim, Runtime())
        other = DeepSpeedEngine(made[1], groups[1], settings.optim, Runtime())
        assert isinstance(native, NativeEngine) and native.layout() == other.layout()
        assert native.weights().keys() == other.weights().keys()
        stored = {key: torch.randn(shape) for key, shape in native.layout()}
        for name_, p in made[0].named_parameters():
            p.data.copy_(stored[f"{name_}|weight"])
        again, _ = make_engine(made[0], groups[0], settings.optim, Runtime())
        again.load(stored.__getitem__, 7)
        for (key, shape), tensor in zip(again.layout(), again.tensors(), strict=True):
            assert tensor.shape == shape and torch.equal(tensor, stored[key]), key


def test_an_earlier_checkpoint_that_does_not_tell_its_engine_is_read(converted, tmp_path, capsys):
    made = train_here(prepare_training(tmp_path, converted), stop_at=3)
    path = next((made / "checkpoints").glob("*/manifest.json"))
    manifest = json.loads(path.read_text())
    del manifest["progress"]["engine"]
    path.write_text(json.dumps(manifest))
    train_here(made)
    assert (made / "model.json").exists() and "the steps until here" not in capsys.readouterr().out
