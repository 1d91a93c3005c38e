"""Training on one rank: resumed equals uninterrupted, in pieces equals at once, and missing or bad labels do no harm."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

from gnnscale.contract import files, stage_run
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.contract.errors import UserError
from gnnscale.contract.results import Diverged, TrainedModel
from gnnscale.contract.settings import OptimSettings
from gnnscale.contract.stage_spec import Runtime
from gnnscale.data.loading.corpus import load_corpus, make_batch
from gnnscale.data.storage import adios, mapped
from gnnscale.inference import prediction_errors
from gnnscale.models.registry import build
from gnnscale.native.library import open_library, reason_not_available
from gnnscale.train import checkpoint, deepspeed_engine, loop, native_engine
from gnnscale.train import loss as train_loss
from gnnscale.train import normalisation as train_normalisation
from gnnscale.train.loss import compute_loss, sum_penalties
from gnnscale.train.muon import Muon, orthogonal
from gnnscale.train.normalisation import Normalisation
from tests.support.corpus import ENV, TINY, read_result, run_stage
from tests.support.training import (
    DEEPSPEED,
    HELD,
    assert_equal,
    change_settings,
    prepare_training,
    read_losses,
    read_metrics,
    read_weights,
    train_here,
)

GRADIENT = {"model": {"forces": "gradient"}}
STRESS = GRADIENT | {"optim": {"stress_weight": 0.5}}
LONG_STEPS = """
import time
taken, clock = [], time.monotonic
time.monotonic = lambda: clock() + 1000 * len(taken)
"""  # before HELD: by this clock, so that each step leaves a checkpoint


@pytest.fixture(params=["library", "deepspeed"])
def engine(request, monkeypatch):
    """Take the steps by the compiled library, where there is one, and once more by DeepSpeed; return the engine's class."""
    if request.param == "deepspeed":
        monkeypatch.setenv(*next(iter(DEEPSPEED.items())))
        return deepspeed_engine.DeepSpeedEngine
    if open_library(torch.float32) is None:
        pytest.skip(reason_not_available())
    return native_engine.NativeEngine


@pytest.fixture(scope="module")
def undisturbed(converted, tmp_path_factory):
    return train_here(prepare_training(tmp_path_factory.mktemp("train"), converted, "undisturbed"))


@pytest.mark.slow
def test_training_learns_and_records_its_cost(undisturbed):
    trained = files.read_model(undisturbed / "model.json", TrainedModel)
    lines = read_metrics(undisturbed)
    assert lines[-1].step == trained.steps == 20
    assert trained.structures == 40 and trained.structures_seen == 160
    assert trained.atoms_seen == 4 * trained.atoms, "four epochs see every atom four times"
    epochs = np.array([line.loss for line in lines]).reshape(4, 5).mean(1)  # each over the same forty structures
    assert epochs[-1] < 0.95 * epochs[0]
    learnt = sum(
        t.numel()
        for n, t in read_weights(undisturbed).items()
        if n not in ("references", "energy_scale", "force_scale") and not n.endswith(".scale")
    )
    assert learnt == trained.parameters


@pytest.mark.slow
def test_killed_and_torn_equals_uninterrupted(converted, undisturbed, tmp_path):
    made = prepare_training(tmp_path, converted, runtime={"checkpoint_seconds": 0.001})
    command = [sys.executable, "-c", LONG_STEPS + HELD, str(made)]
    process = subprocess.Popen(command, env=os.environ | ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    root = made / "checkpoints"
    while len(checkpoint.list_checkpoints(root)) < 2:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (made / "result.json").exists()
    newest = checkpoint.list_checkpoints(root)[-1]
    part = next(newest.glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-100])
    done = run_stage(made)
    assert done.returncode == 0, done.stderr
    assert f"{newest.name} is torn" in done.stdout and "going on from step" in done.stdout
    assert (made / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert read_losses(made) == read_losses(undisturbed)
    assert read_result(made).attempts == 2


@pytest.mark.slow
@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_way_batches_are_made_changes_nothing(converted, undisturbed, tmp_path, monkeypatch, is_held, workers):
    if not is_held:
        monkeypatch.setattr("gnnscale.data.loading.corpus.MOST_BYTES", 0)
    made = train_here(prepare_training(tmp_path, converted, runtime={"loader_workers": workers}))
    assert (made / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert read_losses(made) == read_losses(undisturbed)


@pytest.mark.parametrize(
    ("wanted", "is_held", "device", "expected"),
    [
        (None, True, "cpu", 0),
        (None, False, "cpu", None),
        (None, True, "cuda", None),
        (2, True, "cpu", 2),
        (0, False, "cpu", 0),
    ],
)
def test_a_thread_makes_batches_unless_it_only_takes_the_cpus_time(wanted, is_held, device, expected):
    runtime = Runtime(loader_workers=wanted)
    trainer = SimpleNamespace(
        run=SimpleNamespace(spec=SimpleNamespace(runtime=runtime)), engine=SimpleNamespace(device=torch.device(device))
    )
    assert loop.Trainer.count_workers(trainer, SimpleNamespace(held=object() if is_held else None)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "changes"),
    [
        ({}, {"optim": {"ema": 0.9, "precision": "bf16", "loss": "huber"}}),
        ({"zero_stage": 2}, GRADIENT | {"optim": {"ema": 0.9}}),
        ({"zero_stage": 3, "activation_checkpointing": True}, {}),
    ],
    ids=["ema-bf16", "zero2-ema", "zero3"],
)
def test_stopped_equals_uninterrupted(converted, tmp_path, runtime, changes):
    assert_stopping_changes_no_bit(converted, tmp_path, runtime, changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "changes"),
    [({}, {"optim": {"optimizer": "muon", "ema": 0.9}}), ({"micro_batch_edges": 200, "threads": 2}, STRESS)],
    ids=["muon-ema", "micro-stress"],
)
def test_stopped_equals_uninterrupted_in_both_engines(converted, tmp_path, engine, runtime, changes):
    assert_stopping_changes_no_bit(converted, tmp_path, runtime, changes)


def assert_stopping_changes_no_bit(converted, tmp_path, runtime, changes):
    whole = train_here(prepare_training(tmp_path, converted, "whole", runtime, **changes))
    made = prepare_training(tmp_path, converted, "stopped", runtime, **changes)
    train_here(made, stop_at=7)
    assert [path.name for path in checkpoint.list_checkpoints(made / "checkpoints")] == ["step-000000007"]
    train_here(made)
    assert read_losses(made) == read_losses(whole)
    for name, tensor in read_weights(whole).items():
        assert torch.equal(read_weights(made)[name], tensor), f"{name}: bit for bit"


@pytest.mark.slow
def test_a_run_continues_under_another_zero_stage(converted, undisturbed, tmp_path):
    made = prepare_training(tmp_path, converted)
    for step, stage_of_zero in ((4, 0), (7, 3), (10, 1), (13, 2), (16, 3), (None, 0)):
        spec = stage_run.Run(made).spec
        runtime = spec.runtime.model_copy(update={"zero_stage": stage_of_zero})
        files.write_model(made / "spec.json", spec.model_copy(update={"runtime": runtime}))
        train_here(made, stop_at=step)
    assert_equal(undisturbed, made)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, STRESS], ids=["direct", "stress"])
@pytest.mark.parametrize(
    "runtime",
    [
        {"micro_batch_edges": 1},
        {"micro_batch_edges": 300, "zero_stage": 2},
        {"activation_checkpointing": True},
        {"edge_chunk": 100},
    ],
    ids=["one-by-one", "zero2", "checkpointing", "edge-chunk"],
)
def test_saving_memory_changes_nothing(converted, undisturbed, tmp_path, engine, changes, runtime):
    whole = train_here(prepare_training(tmp_path, converted, "whole", **changes)) if changes else undisturbed
    assert_equal(whole, train_here(prepare_training(tmp_path, converted, "saving", runtime, **changes)))


class Products(TorchDispatchMode):
    """Record the types in which matrix products are done."""

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default):
            self.types |= {(func._schema.name, args[-1].dtype)}
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, GRADIENT], ids=["direct", "gradient"])
def test_bf16_multiplies_in_bf16_and_learns_alike(converted, tmp_path, changes):
    fp32, bf16 = (
        train_here(
            prepare_training(
                tmp_path, converted, precision, **changes | {"optim": {"precision": precision, "epochs": 8}}
            )
        )
        for precision in ("fp32", "bf16")
    )
    a, b = (np.mean([line.loss for line in read_metrics(made)[-5:]]) for made in (fp32, bf16))  # an epoch
    assert b < 0.96 * read_metrics(bf16)[0].loss
    assert b == pytest.approx(a, rel=0.03)
    assert all(tensor.dtype != torch.bfloat16 for tensor in read_weights(bf16).values())
    with Products() as products:
        train_here(
            prepare_training(tmp_path, converted, "seen", **changes | {"optim": {"precision": "bf16", "epochs": 0.1}})
        )
    assert {kind for _, kind in products.types} == {torch.bfloat16}, products.types


def test_a_running_mean_is_what_is_validated_and_saved(converted, tmp_path, monkeypatch, engine):
    seen, engine_step = [], engine.step

    def learnt(self):
        names = {name.partition("|")[0] for name, _ in self.layout()}
        return {name: tensor.detach().clone() for name, tensor in self.weights().items() if name in names}

    def step(self, rate, number):
        seen.extend([] if seen else [learnt(self)])
        norm = engine_step(self, rate, number)
        seen.append(learnt(self))
        return norm

    monkeypatch.setattr(engine, "step", step)
    made = train_here(prepare_training(tmp_path, converted, optim={"ema": 0.8}))
    saved = read_weights(made)
    for name, mean in seen[0].items():
        for number, now in enumerate(seen[1:], 1):
            decay = min(0.8, number / (number + 9))
            mean = mean * decay + now[name] * (1 - decay)
        torch.testing.assert_close(saved[name], mean, rtol=1e-5, atol=1e-6)
        assert not torch.equal(saved[name], seen[-1][name])
    model = prediction_errors.restore(made, files.read_model(made / "model.json", TrainedModel))
    corpus = load_corpus({need.removeprefix("convert/"): path for need, path in converted.items()}, "validation", 4.0)
    batch, optim = make_batch(corpus, np.arange(len(corpus))), change_settings(optim={"ema": 0.8}).optim
    sums = (
        sum_penalties(model, train_normalisation.pool_normalisation(corpus.cards, forces="direct"), *batch, optim)
        .detach()
        .numpy()
    )
    expected, _ = compute_loss(sums, corpus.labels.sum(0), optim)
    assert read_metrics(made)[-1].validation == pytest.approx(expected, rel=1e-6)


def test_validation_is_not_the_fullest_moment(converted, tmp_path, monkeypatch):
    """A step needs the most memory, and memory is planned for that."""
    steps, validations, real = [], [], loop.Trainer.split_share

    def split_share(self, corpus, batch, budget):
        parts = real(self, corpus, batch, budget)
        (steps if corpus is self.train else validations).extend(map(len, parts))
        return parts

    monkeypatch.setattr(loop.Trainer, "split_share", split_share)
    train_here(prepare_training(tmp_path, converted, optim={"batch": 3}))
    assert max(validations) == max(steps) == 3


# ---------------------------------------------------------------------------------------------------- failures
def test_a_diverged_run_is_a_result(converted, tmp_path, engine):
    made = train_here(prepare_training(tmp_path, converted, optim={"learning_rate": 1e30, "epochs": 8.0}))
    assert files.read_model(made / "model.json", TrainedModel).diverged
    said = files.read_model(made / "diverged.json", Diverged)
    assert len(said.structures) == 8 and all(len(words.split()) == 3 for words in said.structures)
    assert {words.split()[1] for words in said.structures} <= {"bulk", "organic"}
    assert said.step == files.read_model(made / "model.json", TrainedModel).steps


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_changes_nothing(converted, tmp_path, monkeypatch, zero):
    monkeypatch.setenv(*next(iter(DEEPSPEED.items())))
    before = train_here(prepare_training(tmp_path, converted, "before", {"zero_stage": zero}), stop_at=5)
    made = prepare_training(tmp_path, converted, "made", {"zero_stage": zero})
    steps, share = iter(range(100)), train_loss.compute_local_loss

    def poisoned(sums, *others):
        bad = torch.sqrt(sums[0] - sums[0].detach())  # 0, with an infinite slope
        return share(sums, *others) + (bad if next(steps) == 5 else 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deepspeed_engine, "compute_local_loss", poisoned)
        train_here(made)
    assert_no_sixth_step(before, made)


def test_the_library_takes_no_step_along_a_gradient_that_is_not_finite(converted, tmp_path, monkeypatch):
    if open_library(torch.float32) is None:
        pytest.skip(reason_not_available())
    before = train_here(prepare_training(tmp_path, converted, "before"), stop_at=5)
    made, steps, learn = (
        prepare_training(tmp_path, converted, "made"),
        iter(range(100)),
        native_engine.NativeEngine.learn,
    )

    def poisoned(self, micro, counts):
        sums = learn(self, micro, counts)
        self.gradient[7] = torch.inf if next(steps) == 5 else self.gradient[7]
        return sums

    monkeypatch.setattr(native_engine.NativeEngine, "learn", poisoned)
    train_here(made)
    assert_no_sixth_step(before, made)


def assert_no_sixth_step(before, made):
    said = files.read_model(made / "diverged.json", Diverged)
    assert (said.what, said.step) == ("gradient", 5)
    read = checkpoint.read_if_whole(checkpoint.list_checkpoints(before / "checkpoints")[-1]).open_reader()
    for name, tensor in read_weights(made).items():
        if name.startswith("backbone.") and not name.endswith(".scale"):
            assert torch.equal(tensor, read(f"{name}|weight")), name


def relabelled(converted, tmp_path, change, split=None):
    """Copy the datasets with other labels, and card.json as the stage convert would have written it for them."""
    needs = {}
    for need, path in converted.items():
        needs[need] = tmp_path / need
        shutil.copytree(path, needs[need])
        packed = change(need, adios.read(path / "shards"))
        write_packed(needs[need], packed)
    return needs


def write_packed(made, packed):
    card, there = files.read_model(made / "card.json", ShardCard), made / "shards"
    units, name = mapped.open_shards(there).units, "00000.bp"
    shutil.rmtree(there)
    there.mkdir()
    entry = adios.write_packed(there / name, packed, card.cutoff, units)
    adios.write_manifest(there, [entry])
    rms = math.sqrt(entry.sums.forces_squared / entry.sums.forces) if entry.sums.forces else math.nan
    files.write_model(made / "card.json", card.model_copy(update={"force_rms": rms}))


def without_forces(packed):
    return packed._replace(forces=np.full_like(packed.forces, np.nan))


def test_a_source_without_forces_teaches_its_energies(converted, tmp_path):
    needs = relabelled(converted, tmp_path, lambda need, p: without_forces(p) if "organic" in need else p)
    lines = read_metrics(train_here(prepare_training(tmp_path, needs, optim={"epochs": 8})))
    first, last = (np.mean([line.loss for line in part]) for part in (lines[:5], lines[-5:]))  # an epoch each
    assert last < first and np.isfinite(lines[-1].validation)


@pytest.mark.parametrize(
    ("change", "changes", "runtime", "words"),
    [
        (None, {"structures": 10_000}, {}, "10000 training structures asked for"),
        (without_forces, {}, {}, "force_weight is 1, but none of the 40 training structures has a label of its forces"),
        (lambda p: p._replace(energy=p.energy * np.nan), {}, {}, "energy_weight is 1, but none"),
        (lambda p: p._replace(stress=p.stress * np.nan), STRESS, {}, "stress_weight is 0.5, but none"),
        (lambda p: p._replace(split=np.where(p.split == 1, 2, p.split)), {}, {}, "validation split"),
        (None, {"optim": {"energy_weight": 0, "force_weight": 0}}, {}, "are all 0"),
        (None, GRADIENT, {"zero_stage": 3}, "ZeRO 3 cannot train gradient forces"),
        (None, {"optim": {"optimizer": "muon"}}, {"zero_stage": 1}, "muon needs whole matrices"),
        (None, {"optim": {"ema": 0.9}}, {"zero_stage": 3}, "running mean"),
    ],
    ids=["too-many", "no-forces", "no-energies", "no-stress", "no-validation", "no-weight", "zero3", "muon", "ema"],
)
def test_impossible_settings_are_refused_in_words(converted, tmp_path, change, changes, runtime, words):
    needs = relabelled(converted, tmp_path, lambda _, packed: change(packed)) if change else converted
    with pytest.raises(UserError, match=words) as refusal:
        train_here(prepare_training(tmp_path, needs, runtime=runtime, **changes))
    assert refusal.value.hints


@pytest.mark.slow
def test_an_undone_need_is_named(tmp_path, converted):
    done = run_stage(prepare_training(tmp_path, {"convert/x": tmp_path / "convert" / "x"}))
    assert done.returncode == 64
    assert "needs convert/x, which is not done" in done.stderr and "Traceback" not in done.stderr


def test_the_checkpoint_of_another_training_is_refused(converted, tmp_path):
    made = train_here(prepare_training(tmp_path, converted), stop_at=3)
    spec = stage_run.Run(made).spec
    files.write_model(made / "spec.json", spec.model_copy(update={"key": "f" * 16}))
    with pytest.raises(UserError, match="belongs to another training"):
        train_here(made)


def test_stress_needs_gradient_forces():
    with pytest.raises(ValidationError, match="direct forces have no stress"):
        change_settings(optim={"stress_weight": 1.0})


# ------------------------------------------------------------------------------------------------------- the parts
def batch_of(converted, config=TINY.model):
    corpus = load_corpus({need.removeprefix("convert/"): path for need, path in converted.items()}, "train", 4.0)
    normalisation = train_normalisation.pool_normalisation(corpus.cards, forces=None)
    torch.manual_seed(0)
    model = build(config, 2, 12.0)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)  # readouts begin at zero
    model.set_normalisation(*normalisation)
    return model, normalisation, make_batch(corpus, np.arange(12)), corpus.labels[:12]


def test_missing_labels_count_for_nothing(converted):
    model, normalisation, (graphs, labels), counts = batch_of(converted, change_settings(**GRADIENT).model)
    optim = OptimSettings(stress_weight=1.0)
    energy, forces, stress = labels.energy.clone(), labels.forces.clone(), labels.stress.clone()
    energy[3], forces[graphs.structure == 5], stress[0] = torch.nan, torch.nan, torch.nan
    sums = sum_penalties(
        model, normalisation, graphs, labels._replace(energy=energy, forces=forces, stress=stress), optim
    )
    whole = sum_penalties(model, normalisation, graphs, labels, optim)
    assert sums.isfinite().all() and (sums < whole).all(), "each kind has lost one"
    assert counts[0, 2] == 9 and (counts[:, 1] == 3 * torch.bincount(graphs.structure).numpy()).all()
    sums.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()), "a NaN label reaches no gradient"


@pytest.mark.parametrize("loss", ["mae", "huber", "l2"])
def test_the_objective_is_a_mean_over_labels_in_real_units(converted, loss):
    model, normalisation, (graphs, labels), counts = batch_of(converted, change_settings(**GRADIENT).model)
    from gnnscale.models.potential import predict

    predicted = predict(model, graphs, stress=True)
    natoms, scale = torch.bincount(graphs.structure), normalisation.energy_scale
    volume = torch.linalg.det(graphs.cell).abs()
    per_atom = (predicted.energy - labels.energy) / natoms / scale
    virial = (predicted.stress - labels.stress) * (volume / natoms)[:, None, None] / scale
    kinds = [per_atom, (predicted.forces - labels.forces) / normalisation.force_scale, virial[virial.isfinite()]]
    by_hand = {
        "mae": lambda e: e.abs(),
        "huber": lambda e: torch.where(e.abs() < 0.01, e**2 / 0.02, e.abs() - 0.005),
        "l2": lambda e: e**2,
    }[loss]
    expected = [float(by_hand(kind).mean().detach()) for kind in kinds]
    optim = OptimSettings(energy_weight=2.0, force_weight=3.0, stress_weight=5.0, loss=loss)
    sums = sum_penalties(model, normalisation, graphs, labels, optim).detach().numpy()
    total, parts = compute_loss(sums, counts.sum(0), optim)
    assert parts == pytest.approx(expected, rel=1e-4)
    assert total == pytest.approx(2 * parts[0] + 3 * parts[1] + 5 * parts[2])


def test_a_checkpoint_part_is_a_safetensors_file_with_its_digest(tmp_path):
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(()), "c": torch.randn(7)}
    layout = [(name, tuple(tensor.shape)) for name, tensor in tensors.items()]
    digest = checkpoint.write_part(tmp_path / "x.safetensors", layout, iter(tensors.values()))
    assert digest == files.sha256(tmp_path / "x.safetensors")
    from safetensors.torch import load_file

    read = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_normalisation_survives_sources_that_lack_labels(converted):
    cards = [files.read_model(path / "card.json", ShardCard) for path in converted.values()]
    bare = cards[1].model_copy(update={"force_rms": float("nan"), "energy_rms": float("nan")})
    pooled: Normalisation = train_normalisation.pool_normalisation((cards[0], bare), forces=None)
    assert pooled.force_scale == pytest.approx(cards[0].force_rms)
    assert pooled.energy_scale == pytest.approx(cards[0].energy_rms)


@pytest.mark.parametrize(("energy", "direct"), [(0.01, 0.2), (0.5, 0.5)], ids=["one-molecule", "many-crystals"])
def test_energies_that_hardly_vary_do_not_outweigh_forces(converted, energy, direct):
    card = files.read_model(next(iter(converted.values())) / "card.json", ShardCard)
    cards = (card.model_copy(update={"energy_rms": energy, "force_rms": 1.0}),)
    units = [
        train_normalisation.pool_normalisation(cards, forces).energy_scale for forces in (None, "direct", "gradient")
    ]
    assert units == pytest.approx([energy, direct, 3.0])


# ------------------------------------------------------------------------------------------------------------- muon
@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 40), (1, 16)])
def test_orthogonal_keeps_directions_and_evens_out_their_size(shape):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonal(matrix) @ v.T  # diagonal, with singular values near 1
    assert torch.allclose(inside, torch.diag(inside.diagonal()), atol=1e-8)
    assert (inside.diagonal() > 0.6).all() and (inside.diagonal() < 1.3).all()


def test_muon_is_torchs_with_our_size_and_adamw_elsewhere():
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(16, 8, generator=generator), torch.randn(5, generator=generator)]
    ours, theirs = ([torch.nn.Parameter(t.clone()) for t in start] for _ in range(2))
    muon = Muon([{"params": ours[:1], "muon": True}, {"params": ours[1:]}], 0.1)
    size = 0.2 * 8 * 2**0.5
    matrix = torch.optim.Muon(theirs[:1], lr=0.01 * size, weight_decay=0.1 / size, adjust_lr_fn="original")
    matrix.param_groups[0]["lr"] = 0.01 * size / 2**0.5  # torch multiplies by sqrt(16/8) itself
    matrix.param_groups[0]["weight_decay"] = 0.1 / size * 2**0.5
    vector = torch.optim.AdamW(theirs[1:], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(5):
        gradients = [torch.randn(t.shape, generator=generator) for t in start]
        for parameters in (ours, theirs):
            for p, g in zip(parameters, gradients):
                p.grad = g.clone()
        for group in muon.param_groups:
            group["lr"] = 0.01
        muon.step(), matrix.step(), vector.step()
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-2, atol=2e-3)  # torch's iterates in bf16
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-6, atol=1e-7)
