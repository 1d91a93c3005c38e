"""The stage `evaluate`: errors of one trained model on a held-out split, by source, and its over-smoothing by layer.

python -m gnnscale.stages.evaluate DIRECTORY
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from gnnscale.atoms.graph import AtomGraphs, to_device
from gnnscale.contract import files, stage_run
from gnnscale.contract.results import Errors, Evaluation, LayerFeatures, TrainedModel
from gnnscale.contract.settings import EvaluateSettings, TrainSettings
from gnnscale.data.loading.corpus import Corpus, load_corpus, make_batch
from gnnscale.inference import oversmoothing
from gnnscale.inference.native_potential import use_library
from gnnscale.inference.prediction_errors import MAX_MESSAGE_NUMBERS, MAX_STRUCTURES, measure_errors, restore
from gnnscale.job import stage_process
from gnnscale.machine import accelerator
from gnnscale.models.potential import Potential

SAMPLED_STRUCTURES = 200  # structures on which over-smoothing is measured; every model of a study sees the same


def main(run: stage_run.Run) -> stage_run.Outputs:
    settings = run.require_settings(EvaluateSettings)
    torch.set_num_threads(run.spec.runtime.threads)
    trained_in = next(path for need, path in run.needs.items() if need.startswith("train/"))
    trained = files.read_model(trained_in / "model.json", TrainedModel)
    device = accelerator.take_device(0)
    model = restore(trained_in, trained).to(device)
    sources = {name: run.needs[f"convert/{name}"] for name in trained.sources}
    corpus = load_corpus(sources, settings.split, trained.model.cutoff)
    predictor, words = use_library(model, run.spec.runtime.threads)
    run.facts["predictions"] = words
    print(f"predictions are made by {words}", flush=True)
    energy, forces = measure_errors(predictor, corpus, MAX_MESSAGE_NUMBERS // trained.model.message_width, run)
    layers = oversmoothing.measure_features(model, (to_device(graphs, device) for graphs in sample_batches(corpus)))
    subset = stage_run.Run(trained_in).require_settings(TrainSettings).subset
    evaluation = make_evaluation(run.spec.id, trained, subset, settings, corpus, energy, forces, model, layers)
    run.write("errors.json", evaluation.model_dump_json(indent=1) + "\n")
    values = {
        "loss": evaluation.loss,
        "energy_mae": evaluation.all.energy_mae,
        "force_mae": evaluation.all.force_mae,
    }
    return stage_run.Outputs(files=["errors.json"], values=values)


def sample_batches(corpus: Corpus) -> Iterator[AtomGraphs]:
    """Yield random structures, the same ones of a split each time, in small batches as features of all layers are held."""
    chosen = np.random.default_rng(0).permutation(len(corpus))[:SAMPLED_STRUCTURES]
    for begin in range(0, len(chosen), MAX_STRUCTURES // 4):
        yield make_batch(corpus, chosen[begin : begin + MAX_STRUCTURES // 4])[0]


def make_evaluation(
    name: str,
    trained: TrainedModel,
    subset: Literal["random", "prefix"],
    settings: EvaluateSettings,
    corpus: Corpus,
    energy: np.ndarray,
    forces: np.ndarray,
    model: Potential,
    layers: tuple[LayerFeatures, ...],
) -> Evaluation:
    whole = measure_statistics(energy, forces)
    parts = (
        (trained.optim.energy_weight, whole.energy_mae, model.energy_scale),
        (trained.optim.force_weight, whole.force_mae, model.force_scale),
    )
    loss = sum(weight * mae / float(scale) for weight, mae, scale in parts if weight > 0)  # an unused part may be NaN
    by_source = {}
    for index, source in enumerate(corpus.names):
        of_source = corpus.source == index
        by_source[source] = measure_statistics(energy[of_source], forces[np.repeat(of_source, corpus.natoms)])
    shared = (set(Evaluation.model_fields) & set(TrainedModel.model_fields)) - {"sources"}  # names there, errors here
    return Evaluation(
        run=name.removeprefix("evaluate/"),
        split=settings.split,
        loss=loss,
        all=whole,
        sources=by_source,
        learning_rate=trained.optim.learning_rate,
        subset=subset,
        layers=layers,
        **{field: getattr(trained, field) for field in shared},
    )


def measure_statistics(energy: np.ndarray, forces: np.ndarray) -> Errors:
    """Return the errors over all labels that are not NaN; a label that a source lacks is NaN."""
    e, f = energy[~np.isnan(energy)], forces[~np.isnan(forces)].astype(np.float64)
    return Errors(
        structures=len(energy),
        atoms=len(forces),
        energy_mae=float(np.abs(e).mean()) if e.size else float("nan"),
        energy_rmse=float(np.sqrt(np.mean(e**2))) if e.size else float("nan"),
        force_mae=float(np.abs(f).mean()) if f.size else float("nan"),
        force_rmse=float(np.sqrt(np.mean(f**2))) if f.size else float("nan"),
    )


if __name__ == "__main__":
    stage_process.run(main)
