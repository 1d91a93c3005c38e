"""The stage `evaluate`: errors of one trained model on a held-out split, per source and over all; and how alike the
features of its atoms become from layer to layer.

python -m gnnscale.evaluate DIRECTORY
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from gnnscale import accelerator, files, oversmoothing, stage
from gnnscale.data import loader
from gnnscale.data.prefetch import ahead
from gnnscale.graph import AtomGraphs
from gnnscale.models import build, predict
from gnnscale.specs import Errors, EvaluateSettings, Evaluation, LayerFeatures, StageSpec, TrainedModel

BATCH, NUMBERS = 64, 2**26  # structures at a time, and numbers in what is said along all of their edges
WIDE, CHUNK = 1024, 2**23  # above this width, and for gradient forces, so many of these numbers at once
SAMPLE = 200  # structures on which over-smoothing is measured; every model of a study sees the same


def main(run: stage.Run) -> stage.Outputs:
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
    return stage.Outputs(files=["errors.json"], values=values)


def restore(directory: Path, trained: TrainedModel) -> torch.nn.Module:
    """As it was trained; edges in chunks where they would need much memory."""
    chunked = trained.model.width > WIDE or trained.model.forces == "gradient"
    chunk = max(1, CHUNK // trained.model.width) if chunked else None
    model = build(trained.model, len(trained.sources), trained.average_degree, chunk)
    model.load_state_dict(load_file(directory / "model.safetensors"))
    return model.eval().requires_grad_(False)


def errors(model: torch.nn.Module, corpus: loader.Corpus, edges: int, run: stage.Run) -> tuple[np.ndarray, np.ndarray]:
    """Signed errors: energy per atom (S,) in eV, force components (A, 3) in eV/Angstrom."""
    device, energy, forces = next(model.parameters()).device, [], []
    make = partial(loader.share_of_rank, corpus, pin=device.type != "cpu")
    plan = ((chosen, [chosen]) for chosen in batches(corpus.nedges, edges))
    for chosen, (made,) in ahead(plan, make, run.spec.runtime.loader_workers):
        graphs, labels = made()
        with torch.no_grad():  # or gradient forces keep what a second derivative would need
            predicted = predict(model, on(graphs, device))
        natoms = torch.from_numpy(corpus.natoms[chosen])
        # a NaN that the model says is an infinite error; one in the labels is none at all
        energy.append(((predicted.energy.cpu().nan_to_num(torch.inf) - labels.energy) / natoms).numpy())
        forces.append((predicted.forces.cpu().nan_to_num(torch.inf) - labels.forces).numpy())
        run.progress(int(chosen[-1]) + 1, len(corpus))
    return np.concatenate(energy), np.concatenate(forces)


def batches(edges: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """All structures in their order; at most `BATCH` of them and `most` edges, or one that alone has more."""
    before, begin = np.concatenate(([0], np.cumsum(edges, dtype=np.int64))), 0
    while begin < len(edges):
        fit = int(np.searchsorted(before, before[begin] + most, "right")) - 1
        end = max(begin + 1, min(begin + BATCH, fit))
        yield np.arange(begin, end)
        begin = end


def on(graphs: AtomGraphs, device: torch.device) -> AtomGraphs:
    return AtomGraphs(*(t.to(device, non_blocking=True) for t in graphs))


def sample(corpus: loader.Corpus) -> Iterator[AtomGraphs]:
    """Some structures at random, always the same of a split, in small batches: features of all layers are held at once."""
    chosen = np.random.default_rng(0).permutation(len(corpus))[:SAMPLE]
    for begin in range(0, len(chosen), BATCH // 4):
        yield loader.batch(corpus, chosen[begin : begin + BATCH // 4])[0]


def summarise(name: str, trained: TrainedModel, subset: str, settings: EvaluateSettings, corpus: loader.Corpus,
              energy: np.ndarray, forces: np.ndarray, model: torch.nn.Module,
              layers: tuple[LayerFeatures, ...]) -> Evaluation:  # fmt: skip
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
        run=name.removeprefix("evaluate/"), split=settings.split, loss=loss, all=whole, sources=by_source,
        learning_rate=trained.optim.learning_rate, subset=subset, layers=layers,
        **{field: getattr(trained, field) for field in shared},
    )  # fmt: skip


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
    stage.run(main)
