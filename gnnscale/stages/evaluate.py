"""The stage `evaluate`: errors of one trained model on a held-out split, per source and over all; and how alike the
features of its atoms become from layer to layer.

python -m gnnscale.stages.evaluate DIRECTORY
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from gnnscale.atoms.graph import AtomGraphs
from gnnscale.contract import files, stage_run
from gnnscale.contract.results import Errors, Evaluation, LayerFeatures, TrainedModel
from gnnscale.contract.settings import EvaluateSettings
from gnnscale.contract.stage_spec import StageSpec
from gnnscale.data.loading import corpus as loader
from gnnscale.inference import oversmoothing
from gnnscale.inference.prediction_errors import BATCH, NUMBERS, errors, on, restore
from gnnscale.job import stage_process
from gnnscale.machine import accelerator

SAMPLE = 200  # structures on which over-smoothing is measured; every model of a study sees the same


def main(run: stage_run.Run) -> stage_run.Outputs:
    settings: EvaluateSettings = run.spec.settings
    torch.set_num_threads(run.spec.runtime.threads)
    trained_in = next(path for need, path in run.needs.items() if need.startswith("train/"))
    trained = files.read_model(trained_in / "model.json", TrainedModel)
    device = accelerator.take(0)
    model = restore(trained_in, trained).to(device)
    sources = {name: run.needs[f"convert/{name}"] for name in trained.sources}
    corpus = loader.load(sources, settings.split, trained.model.cutoff)
    energy, forces = errors(model, corpus, NUMBERS // trained.model.width, run)
    layers = oversmoothing.measured(model, (on(graphs, device) for graphs in sample(corpus)))
    subset = files.read_model(trained_in / "spec.json", StageSpec).settings.subset
    evaluation = summarise(run.spec.id, trained, subset, settings, corpus, energy, forces, model, layers)
    run.write("errors.json", evaluation.model_dump_json(indent=1) + "\n")
    values = {
        "loss": evaluation.loss,
        "energy_mae": evaluation.all.energy_mae,
        "force_mae": evaluation.all.force_mae,
    }
    return stage_run.Outputs(files=["errors.json"], values=values)


def sample(corpus: loader.Corpus) -> Iterator[AtomGraphs]:
    """Some structures at random, always the same of a split, in small batches: features of all layers are held at once."""
    chosen = np.random.default_rng(0).permutation(len(corpus))[:SAMPLE]
    for begin in range(0, len(chosen), BATCH // 4):
        yield loader.batch(corpus, chosen[begin : begin + BATCH // 4])[0]


def summarise(
    name: str,
    trained: TrainedModel,
    subset: str,
    settings: EvaluateSettings,
    corpus: loader.Corpus,
    energy: np.ndarray,
    forces: np.ndarray,
    model: torch.nn.Module,
    layers: tuple[LayerFeatures, ...],
) -> Evaluation:
    whole = statistics(energy, forces)
    parts = (
        (trained.optim.energy_weight, whole.energy_mae, model.energy_scale),
        (trained.optim.force_weight, whole.force_mae, model.force_scale),
    )
    loss = sum(weight * mae / float(scale) for weight, mae, scale in parts if weight > 0)  # an unused part may be NaN
    by_source = {}
    for index, source in enumerate(corpus.names):
        mine = corpus.source == index
        by_source[source] = statistics(energy[mine], forces[np.repeat(mine, corpus.natoms)])
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


def statistics(energy: np.ndarray, forces: np.ndarray) -> Errors:
    """A label that a source lacks is NaN, and is left out."""
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
