"""The results of `evaluate` equal those of one batch of all held-out structures, for every form of the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.contract import errors, files, stage_run
from gnnscale.contract.dataset_card import ShardCard, Split
from gnnscale.contract.results import Evaluation, TrainedModel
from gnnscale.contract.scaling_results import Point
from gnnscale.contract.settings import ConvertSettings, EvaluateSettings, OptimSettings, TrainSettings
from gnnscale.data.loading.corpus import load_corpus, make_batch
from gnnscale.data.storage import mapped, splits
from gnnscale.data.storage.label_rms import pool_label_rms
from gnnscale.inference import oversmoothing, prediction_errors
from gnnscale.models.potential import predict
from gnnscale.models.registry import build
from gnnscale.scaling import points
from gnnscale.stages import evaluate
from gnnscale.stages.memory_levers import measure_peak_bytes
from gnnscale.train.normalisation import pool_normalisation
from tests.gnnscale.models.test_physics import lively
from tests.support import conversions, layouts
from tests.support.corpus import make_stage_directory, run_stage

FORMS = {"paper": "paper", "egnn-edge-direct": "edge", "egnn-deferred-gradient": "deferred"}


def of(model: EGNNConfig, sources: tuple[str, ...], optim: OptimSettings) -> TrainedModel:
    return TrainedModel(
        model=model,
        sources=sources,
        average_degree=12.0,
        diverged=False,
        parameters=1,
        body_parameters=1,
        structures=4,
        atoms=40,
        epochs=1.0,
        steps=1,
        structures_seen=4,
        atoms_seen=40,
        edges_seen=400,
        flops=1.0,
        seed=0,
        optim=optim,
    )


@pytest.fixture(params=FORMS)
def evaluated(request, converted, tmp_path):
    """Return a stage's directory, a network with random weights as if it had been trained, and its corpus."""
    potential = lively(request.param).float()
    forces = "gradient" if "gradient" in request.param else "direct"
    model = EGNNConfig(form=FORMS[request.param], forces=forces, width=16, depth=2, cutoff=3.0)
    trained = of(model, ("bulk", "organic"), OptimSettings(energy_weight=2.0, force_weight=3.0))
    made = make_stage_directory(tmp_path, "train/x", TrainSettings(model=model, subset="prefix"))
    files.write_model(made / "model.json", trained)
    save_file(potential.state_dict(), made / "model.safetensors")
    there = make_stage_directory(tmp_path, "evaluate/x", EvaluateSettings(), {"train/x": made, **converted})
    evaluate.main(stage_run.Run(there))
    sources = {need.removeprefix("convert/"): path for need, path in converted.items()}
    yield there, potential, load_corpus(sources, "test", 3.0)
    potential.double()


def test_errors_are_those_of_one_large_batch(evaluated):
    there, potential, corpus = evaluated
    said = files.read_model(there / "errors.json", Evaluation)
    graphs, labels = make_batch(corpus, np.arange(len(corpus)))
    with torch.no_grad():
        found = predict(potential, graphs)
    seen = find_seen(there, corpus)
    energy = ((found.energy - labels.energy) / torch.from_numpy(corpus.natoms)).abs()[seen]
    forces = (found.forces - labels.forces).abs().double()[seen[graphs.structure]]
    assert said.all.structures == len(energy) and said.all.atoms == len(forces)
    assert said.all.energy_mae == pytest.approx(float(energy.mean()), rel=1e-4)
    assert said.all.force_mae == pytest.approx(float(forces.mean()), rel=1e-4)
    whole = (found.energy - labels.energy).double()[seen].square().mean().sqrt()
    assert said.all.energy_rmse_per_structure == pytest.approx(float(whole), rel=1e-4)
    assert said.trained_on == corpus.names
    rms = pool_label_rms(corpus.cards)
    assert said.loss == pytest.approx(
        2 * said.all.energy_mae / rms.energy + 3 * said.all.force_mae / rms.force, rel=1e-9
    )
    for index, name in enumerate(corpus.names):
        mine = torch.from_numpy(corpus.source == index)
        of_atoms = mine[graphs.structure][seen[graphs.structure]]
        assert said.sources[name].energy_mae == pytest.approx(float(energy[mine[seen]].mean()), rel=1e-4)
        assert said.sources[name].force_mae == pytest.approx(float(forces[of_atoms].mean()), rel=1e-4)
        apart = int((mine & ~seen).sum())
        assert (said.unseen[name].errors.structures if apart else 0) == apart
    assert said.unseen and not said.tests


def find_seen(there, corpus):
    """Return which structures have only elements that the training split of their source has, one by one: (S,) bool."""
    needs = stage_run.Run(there).needs
    seen = []
    for k in range(len(corpus)):
        name = corpus.names[corpus.source[k]]
        train = mapped.open_shards(needs[f"convert/{name}"] / "shards")
        trained = set(train.select(np.flatnonzero(train.split == 0)).numbers.tolist())
        seen.append(set(corpus.select(np.array([k])).numbers.tolist()) <= trained)
    return torch.tensor(seen)


def test_a_wide_network_in_chunks_gives_the_same(evaluated, monkeypatch):
    there, _, corpus = evaluated
    one = files.read_model(there / "errors.json", Evaluation)
    monkeypatch.setattr(prediction_errors, "WIDEST_UNCHUNKED", 8)
    monkeypatch.setattr(prediction_errors, "NUMBERS_PER_CHUNK", 16 * (corpus.edges // 7))
    monkeypatch.setattr(prediction_errors, "MAX_MESSAGE_NUMBERS", 16 * (corpus.edges // 3))
    evaluate.main(stage_run.Run(there))
    other = files.read_model(there / "errors.json", Evaluation)
    assert other.all.energy_mae == pytest.approx(one.all.energy_mae, rel=1e-4)
    assert other.all.force_mae == pytest.approx(one.all.force_mae, rel=1e-4)


def test_batches_are_bounded_by_edges_and_by_structures():
    edges, most = np.random.default_rng(0).integers(0, 900, 1000).astype(np.uint32), 4000
    edges[[5, 999]] = 100_000
    found = list(prediction_errors.split_by_edges(edges, most))
    assert np.array_equal(np.concatenate(found), np.arange(1000))
    assert all(
        len(each) == 1 or (len(each) <= prediction_errors.MAX_STRUCTURES and edges[each].sum() <= most)
        for each in found
    )
    assert any(len(each) == 1 for each in found) and len(found) < 200
    assert [len(each) for each in prediction_errors.split_by_edges(np.ones(150), 10**9)] == [64, 64, 22]


@pytest.mark.slow
@pytest.mark.parametrize("evaluated", ["egnn-deferred-gradient"], indirect=True)
def test_gradient_forces_keep_no_second_graph(evaluated, monkeypatch):
    """A training step keeps one, and memory is planned for that."""
    there, potential, corpus = evaluated
    graphs, _ = make_batch(corpus, np.arange(len(corpus)))
    seen = []
    monkeypatch.setattr(
        prediction_errors, "predict", lambda *given: seen.append(torch.is_grad_enabled()) or predict(*given)
    )
    evaluate.main(stage_run.Run(there))
    assert seen and not any(seen)
    with torch.no_grad():
        least = measure_peak_bytes(lambda: predict(potential, graphs))
    assert least < 0.6 * measure_peak_bytes(lambda: predict(potential, graphs))


def test_layers_are_those_of_one_large_batch(evaluated):
    """All held-out structures are sampled, as they are few; the last layer is in a row of points.csv."""
    there, potential, corpus = evaluated
    assert prediction_errors.MAX_STRUCTURES // 4 < len(corpus) <= evaluate.SAMPLED_STRUCTURES  # in several batches
    said = files.read_model(there / "errors.json", Evaluation)
    expected = oversmoothing.measure_features(potential, [make_batch(corpus, np.arange(len(corpus)))[0]])
    assert len(said.layers) == 3
    for one, other in zip(said.layers, expected, strict=True):
        assert one.model_dump() == pytest.approx(other.model_dump(), rel=1e-4)
    row = points.to_point(said)
    assert (row.cosine_distance, row.dirichlet_energy) == (said.layers[-1].distance, said.layers[-1].dirichlet)
    assert row.subset == "prefix"


@pytest.mark.slow
def test_energies_alone_have_a_loss(tmp_path):
    """Forces that are not trained may be missing; the loss is that of the energies."""
    lines = [f'2\nenergy={-30 - 0.01 * k} pbc="F F F"\nO 0 0 0\nO 0 0 {1.2 + 0.01 * k}\n' for k in range(60)]
    (tmp_path / "raw.xyz").write_text("".join(lines))
    settings = ConvertSettings(dataset="extxyz", name="o2", options={"raw": str(tmp_path / "raw.xyz")}, cutoff=3.0)
    data = make_stage_directory(tmp_path, "convert/o2", settings)
    done = run_stage(data)
    assert done.returncode == 0, done.stderr
    made, losses = make_stage_directory(tmp_path, "train/x", TrainSettings()), []
    model = EGNNConfig(width=16, depth=2, radial=4, cutoff=3.0)
    potential = build(model, 1, 12.0)
    save_file(potential.state_dict(), made / "model.safetensors")
    for name, weight in (("energies", 0.0), ("both", 1.0)):
        optim = OptimSettings(energy_weight=2.0, force_weight=weight)
        files.write_model(made / "model.json", of(model, ("o2",), optim))
        there = make_stage_directory(
            tmp_path, f"evaluate/{name}", EvaluateSettings(), {"train/x": made, "convert/o2": data}
        )
        evaluate.main(stage_run.Run(there))
        said = files.read_model(there / "errors.json", Evaluation)
        losses.append(said.loss)
    rms = files.read_model(data / "card.json", ShardCard).energy_rms
    assert losses[0] == pytest.approx(2 * said.all.energy_mae / rms) and np.isnan(losses[1])


def test_the_sample_is_the_same_for_every_model(converted, monkeypatch):
    corpus = load_corpus({need.removeprefix("convert/"): path for need, path in converted.items()}, "train", 3.0)
    monkeypatch.setattr(evaluate, "SAMPLED_STRUCTURES", 20)
    one, other = ([graphs.positions for graphs in evaluate.sample_batches(corpus)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert sum(len(graphs.cell) for graphs in evaluate.sample_batches(corpus)) == 20 < len(corpus)
    assert len({int(s) for graphs in evaluate.sample_batches(corpus) for s in graphs.source}) == 2


def test_points_of_earlier_versions_are_read(tmp_path):
    """Tables may lack the columns of layers, or have them empty or not a number."""
    fields = [name for name in Point.model_fields if name not in ("subset", "cosine_distance", "dirichlet_energy")]
    row = dict.fromkeys(fields, "1") | {"diverged": "False"}
    for more in ({}, {"cosine_distance": "", "dirichlet_energy": "nan"}):
        text = ",".join(row | more) + "\n" + ",".join((row | more).values()) + "\n"
        (tmp_path / "points.csv").write_text(text)
        (found,) = points.read_points(tmp_path / "points.csv")
        assert found.cosine_distance is None and found.dirichlet_energy is None
    (tmp_path / "points.csv").write_text(points.to_csv([found]))
    assert points.read_points(tmp_path / "points.csv") == [found]


# ------------------------------------------------------------------------------------------------- external tests
def trained_on_molecules(tmp_path, tests, **split):
    """Return the directory of an evaluation of a network with random weights, of two sources and external tests of `mine`.

    The first source has other energies and all elements; `mine` has molecules of H, C and N.
    """
    molecules = [s for seed in range(9) for s in layouts.make_molecules(seed=seed)]
    mine = [s._replace(group=f"{k}") for k, s in enumerate(molecules) if 8 not in s.numbers]
    other = [s._replace(group=f"{k}", energy=1.2 * s.energy) for k, s in enumerate(molecules)]
    known = {"mine": {"split": Split(validation=0.1, **split)}, "first": {"split": Split(test=0.3)}}
    sources = {"mine": mine, "first": other, **tests}
    needs = {}
    for name, structures in sources.items():
        settings = known.get(name, {"test_of": "mine"})
        conversions.convert(tmp_path / "convert" / name, structures, name=name, **settings)
        needs[f"convert/{name}"] = tmp_path / "convert" / name
    model = EGNNConfig(width=16, depth=2, radial=4, cutoff=5.0)
    made = make_stage_directory(tmp_path, "train/x", TrainSettings())
    files.write_model(made / "model.json", of(model, ("first", "mine"), OptimSettings()))
    network = build(model, 2, 12.0)
    cards = tuple(files.read_model(needs[f"convert/{name}"] / "card.json", ShardCard) for name in ("first", "mine"))
    network.set_normalisation(*pool_normalisation(cards, None))
    save_file(network.state_dict(), made / "model.safetensors")
    return make_stage_directory(tmp_path, "evaluate/x", EvaluateSettings(), {"train/x": made, **needs})


def evaluate_in(there):
    evaluate.main(stage_run.Run(there))
    return files.read_model(there / "errors.json", Evaluation)


def molecules_of(seed, with_oxygen=False):
    return [s for s in layouts.make_molecules(seed=seed) if with_oxygen or 8 not in s.numbers]


def test_external_tests_are_reported_by_name_and_do_not_change_the_laws(tmp_path):
    tests = {"mine.a": molecules_of(77), "mine.b": molecules_of(78) + molecules_of(79)}
    said = evaluate_in(trained_on_molecules(tmp_path, tests, test=0.3))
    assert said.tests == {"mine.a": "mine", "mine.b": "mine"}
    assert set(said.sources) == {"first", "mine", "mine.a", "mine.b"}
    assert said.sources["mine.a"].structures == 6 and said.sources["mine.b"].structures == 12
    splits_alone = [said.sources[name] for name in ("first", "mine")]
    assert said.all.structures == sum(each.structures for each in splits_alone), (
        "laws are fitted to the splits of sources"
    )
    assert said.all.energy_mae == pytest.approx(
        sum(each.structures * each.energy_mae for each in splits_alone) / said.all.structures, rel=1e-6
    )


def test_the_tests_of_a_source_without_a_split_of_its_own_are_taken_together(tmp_path):
    tests = {"mine.a": molecules_of(77), "mine.b": molecules_of(78) + molecules_of(79)}
    said = evaluate_in(trained_on_molecules(tmp_path, tests, test=0.0))
    a, b, first = (said.sources[name] for name in ("mine.a", "mine.b", "first"))
    assert set(said.sources) == {*tests, "first"} and said.all.structures == 18 + first.structures
    total = 6 * a.energy_mae + 12 * b.energy_mae + first.structures * first.energy_mae
    assert said.all.energy_mae == pytest.approx(total / said.all.structures, rel=1e-6)


def test_an_external_test_has_the_errors_of_the_same_structures_in_the_split(tmp_path):
    """It is numbered as its source, not as the first, and has that source's references."""
    known, split = [s for seed in range(9) for s in layouts.make_molecules(seed=seed)], Split(validation=0.1, test=0.3)
    held_out = [s for k, s in enumerate(known) if 8 not in s.numbers and splits.split_of(f"{k}", split) == 2]
    said = evaluate_in(trained_on_molecules(tmp_path, {"mine.a": held_out}, test=0.3))
    assert said.sources["mine.a"] == said.sources["mine"] != said.sources["first"]
    assert said.sources["mine"].structures > 5


def test_elements_that_were_not_trained_on_are_named_and_their_errors_are_apart(tmp_path, capfd):
    """An element that only another source has has no reference in this one."""
    tests = {"mine.a": molecules_of(77, with_oxygen=True)}
    said = evaluate_in(trained_on_molecules(tmp_path, tests, test=0.3))
    assert said.sources["mine.a"].structures == 6 and said.unseen["mine.a"].elements == ("O",)
    assert said.unseen["mine.a"].errors.structures == 3 and "mine" not in said.unseen
    assert "mine.a: 3 of 9 structures have elements that no training structure of mine has: O" in capfd.readouterr().out


def test_nothing_but_unseen_elements_is_refused(tmp_path):
    there = trained_on_molecules(tmp_path, {}, test=0.3)
    for name in ("first", "mine"):
        path = stage_run.Run(there).needs[f"convert/{name}"] / "card.json"
        card = files.read_model(path, ShardCard)
        files.write_model(path, card.model_copy(update={"trained_elements": ("C", "N", "O")}))
    with pytest.raises(errors.UserError, match="only elements which were trained on; others are H"):
        evaluate_in(there)
