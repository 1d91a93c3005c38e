"""On a device that holds its own tensors everything comes out as on the CPU, and nothing is left behind there."""

import numpy as np
import pytest
import torch

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.atoms.graph import to_device
from gnnscale.contract import stage_run
from gnnscale.contract.settings import EvaluateSettings, LeverSettings, OptimSettings
from gnnscale.contract.stage_spec import Runtime
from gnnscale.data.loading.corpus import load_corpus
from gnnscale.inference import oversmoothing, prediction_errors
from gnnscale.machine.rank_env import read_ranks
from gnnscale.models.registry import build
from gnnscale.stages import evaluate, memory_levers
from gnnscale.train import process_group
from gnnscale.train.deepspeed_engine import DeepSpeedEngine
from gnnscale.train.loop import Progress, Trainer
from gnnscale.train.loss import compute_local_loss, sum_penalties
from gnnscale.train.normalisation import Normalisation, pool_normalisation
from tests.support import pretend, training
from tests.support.corpus import TINY, make_stage_directory
from tests.support.synthetic import random_graph

pytestmark = pytest.mark.usefixtures("environment")  # where a group of one rank tells of itself
COUNTS, OPTIM = np.array([1, 40, 0]), OptimSettings()
NETWORKS = {  # not gradients in chunks: their tangents, dual numbers, cannot be pretended
    "edge": ({"form": "edge"}, None),
    "edge, chunks": ({"form": "edge"}, 64),
    "deferred": ({"form": "deferred"}, None),
    "deferred, chunks": ({"form": "deferred"}, 64),
    "gradient": ({"form": "edge", "forces": "gradient"}, None),
    "deferred gradient": ({"form": "deferred", "forces": "gradient"}, None),
    "paper": ({"form": "paper"}, None),
}


def network(name):
    torch.manual_seed(0)
    options, chunk = NETWORKS[name]
    return build(EGNNConfig(width=16, depth=2, **options), 1, 10.0, chunk)


def gradients(model, normalisation, graphs, labels):
    compute_local_loss(sum_penalties(model, normalisation, graphs, labels, OPTIM), COUNTS, OPTIM, 1).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_cpu(name):
    graphs, labels = random_graph(40, 10)
    normalisation = Normalisation(torch.ones(1, 119, dtype=torch.float64), 2.0, 3.0)
    expected = gradients(network(name), normalisation, graphs, labels)
    with pretend.pretend_device() as device:
        there = to_device(graphs, device), to_device(labels, device)
        found = gradients(pretend.move_model(network(name)), normalisation.to(device), *there)
    assert found.keys() == expected.keys() and expected
    for name, gradient in expected.items():
        assert isinstance(found[name], pretend.DeviceTensor)
        torch.testing.assert_close(found[name].here, gradient)


def test_what_is_left_behind_is_found():
    graphs, labels = random_graph(40, 10)
    normalisation = Normalisation(torch.ones(1, 119, dtype=torch.float64), 2.0, 3.0)
    with pretend.pretend_device() as device:
        there = to_device(graphs, device), to_device(labels, device)
        with pytest.raises(RuntimeError, match="two devices"):
            gradients(pretend.move_model(network("edge")), normalisation, *there)
        with pytest.raises(RuntimeError, match="two devices"):
            gradients(network("edge"), normalisation.to(device), *there)


class Descent(DeepSpeedEngine):
    """DeepSpeed's engine without DeepSpeed, with a network on any device."""

    def __init__(self, model, device):
        self.model, self.device, self.optim, self.mean = model, torch.device(device), TINY.optim, {}
        self.normalisation = Normalisation(model.references, float(model.energy_scale), float(model.force_scale))

    def __call__(self, *inputs):
        return self.model(*inputs)

    def backward(self, loss, last):
        loss.backward()

    def step(self, rate, number):
        norm = torch.stack([p.grad.square().sum() for p in self.model.parameters() if p.grad is not None]).sum().sqrt()
        with torch.no_grad():
            for p in self.model.parameters():
                if p.grad is not None:
                    p.add_(p.grad, alpha=-rate)
                    p.grad = None
        return float(norm)


def trained(made, device, move):
    """Losses and weights of the loop itself."""
    run = stage_run.Run(made)
    process_group.join_ranks(1)
    sources = {need.removeprefix("convert/"): path for need, path in run.needs.items()}
    train, validation = (load_corpus(sources, split, TINY.model.cutoff) for split in ("train", "validation"))
    torch.manual_seed(0)
    model = build(TINY.model, len(sources), 10.0)
    model.set_normalisation(*pool_normalisation(train.cards, forces=None))
    Trainer(run, Descent(move(model), device), train, validation, read_ranks(), Progress()).fit()
    return training.read_losses(made), model


@pytest.mark.slow
def test_the_loop_is_that_of_the_cpu(converted, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self, pinned: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    expected, model = trained(training.prepare_training(tmp_path, converted, "here"), "cpu", lambda m: m)
    with pretend.pretend_device() as device:
        found, moved = trained(training.prepare_training(tmp_path, converted, "there"), device, pretend.move_model)
    assert len(found) == len(expected) > 10
    for one, other in zip(expected, found, strict=True):
        assert other.keys() == one.keys()
        for field, value in one.items():
            assert other[field] == (value if value is None else pytest.approx(value, rel=1e-5)), field
    for (name, here), (_, there) in zip(model.named_parameters(), moved.named_parameters(), strict=True):
        torch.testing.assert_close(there.here, here, msg=name)


def test_errors_and_over_smoothing_are_those_of_the_cpu(converted, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    run = stage_run.Run(make_stage_directory(tmp_path, "evaluate/x", EvaluateSettings(), converted))
    corpus = load_corpus({need.removeprefix("convert/"): path for need, path in converted.items()}, "test", 4.0)
    torch.manual_seed(0)
    model = build(TINY.model, 2, 10.0).requires_grad_(False)
    energy, forces = prediction_errors.measure_errors(model, corpus, 10**6, run)
    layers = oversmoothing.measure_features(model, evaluate.sample_batches(corpus))
    with pretend.pretend_device() as device:
        pretend.move_model(model)
        there = prediction_errors.measure_errors(model, corpus, 10**6, run)
        measured = oversmoothing.measure_features(
            model, (to_device(graphs, device) for graphs in evaluate.sample_batches(corpus))
        )
    np.testing.assert_allclose(there[0], energy, rtol=1e-5)
    np.testing.assert_allclose(there[1], forces, rtol=1e-5, atol=1e-6)
    for one, other in zip(layers, measured, strict=True):
        assert other.model_dump() == pytest.approx(one.model_dump(), rel=1e-5)


def test_the_step_of_a_lever_is_that_of_the_cpu(converted, tmp_path, monkeypatch):
    asked = LeverSettings(model=TINY.model, batch=16)
    run = stage_run.Run(make_stage_directory(tmp_path, "memory_levers/x", asked, converted))
    process_group.join_ranks(1)
    task, _ = memory_levers.prepare_task(run, 1, 0)
    monkeypatch.setattr(memory_levers, "DeepSpeedEngine", lambda model, *_: Descent(model, "cpu"))
    expected = memory_levers.Step(task, memory_levers.Way("plain", Runtime()))
    losses = expected(), expected()
    with pretend.pretend_device() as device:
        monkeypatch.setattr(
            memory_levers, "DeepSpeedEngine", lambda model, *_: Descent(pretend.move_model(model), device)
        )
        found = memory_levers.Step(task, memory_levers.Way("plain", Runtime()))
        assert (found(), found()) == pytest.approx(losses, rel=1e-6)
