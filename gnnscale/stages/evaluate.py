"""The stage `evaluate`: errors of one model on held-out structures, by source and test, and its over-smoothing by layer.

python -m gnnscale.stages.evaluate DIRECTORY
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from gnnscale.atoms.graph import AtomGraphs, to_device
from gnnscale.contract import errors, files, stage_run
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.contract.results import Errors, Evaluation, LayerFeatures, TrainedModel, UnseenElements
from gnnscale.contract.settings import EvaluateSettings, TrainSettings
from gnnscale.data.loading.corpus import Corpus, make_batch
from gnnscale.data.storage.label_rms import LabelRms, pool_label_rms
from gnnscale.inference import oversmoothing
from gnnscale.inference.held_out import (
    MeasuredPart,
    SignedErrors,
    count_in_summary,
    divide_errors,
    join_errors,
    load_held_out,
)
from gnnscale.inference.native_potential import use_library
from gnnscale.inference.prediction_errors import MAX_MESSAGE_NUMBERS, MAX_STRUCTURES, measure_errors, restore
from gnnscale.job import stage_process
from gnnscale.machine import accelerator

SAMPLED_STRUCTURES = 200  # structures on which over-smoothing is measured; every model of a study sees the same


def main(run: stage_run.Run) -> stage_run.Outputs:
    settings = run.require_settings(EvaluateSettings)
    torch.set_num_threads(run.spec.runtime.threads)
    trained_in = next(path for need, path in run.needs.items() if need.startswith("train/"))
    trained = files.read_model(trained_in / "model.json", TrainedModel)
    device = accelerator.take_device(0)
    model = restore(trained_in, trained).to(device)
    sources, tests = divide_needs(run, trained.sources)
    held_out = load_held_out(sources, tests, settings.split, trained.model.cutoff)
    predictor, words = use_library(model, run.spec.runtime.threads)
    run.facts["predictions"] = words
    print(f"predictions are made by {words}", flush=True)
    cards, most = read_cards(sources), MAX_MESSAGE_NUMBERS // trained.model.message_width
    parts = []
    for each in held_out:
        errors_of_all = SignedErrors(*measure_errors(predictor, each.corpus, most, run), each.corpus.natoms)
        parts += divide_errors(each, errors_of_all, cards, trained.sources)
    check_parts(run.spec.id, parts)
    batches = (to_device(graphs, device) for graphs in sample_batches(held_out[0].corpus))
    layers = oversmoothing.measure_features(model, batches)
    subset = stage_run.Run(trained_in).require_settings(TrainSettings).subset
    evaluation = make_evaluation(run.spec.id, trained, subset, settings, parts, pool_label_rms(cards), layers)
    run.write("errors.json", evaluation.model_dump_json(indent=1) + "\n")
    values = {
        "loss": evaluation.loss,
        "energy_mae": evaluation.all.energy_mae,
        "force_mae": evaluation.all.force_mae,
    }
    return stage_run.Outputs(files=["errors.json"], values=values)


def divide_needs(run: stage_run.Run, names: Sequence[str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the directories of the model's sources in its order, and of the external tests, by name."""
    converted = {need.removeprefix("convert/"): path for need, path in run.needs.items() if need.startswith("convert/")}
    sources = {name: converted.pop(name) for name in names}
    return sources, converted


def read_cards(sources: dict[str, Path]) -> tuple[ShardCard, ...]:
    return tuple(files.read_model(path / "card.json", ShardCard) for path in sources.values())


def check_parts(name: str, parts: Sequence[MeasuredPart]) -> None:
    """Say which structures have unseen elements; a UserError if all have, or if there are none."""
    for part in parts:
        if count := len(part.unseen.energy):
            print(
                f"{part.name}: {count:,} of {count + len(part.seen.energy):,} structures have elements that no training "
                f"structure of {part.source} has: {', '.join(part.unseen_elements)}; their errors are given apart",
                flush=True,
            )
    if not any(len(part.seen.energy) for part in parts):
        elements = sorted({symbol for part in parts for symbol in part.unseen_elements})
        raise errors.UserError(
            f"{name}: there is no structure to test on that has only elements which were trained on; "
            f"others are {', '.join(elements) or 'none'}",
            "train on structures with these elements, or test on others",
            kind="data",
        )


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
    parts: Sequence[MeasuredPart],
    rms: LabelRms,
    layers: tuple[LayerFeatures, ...],
) -> Evaluation:
    whole = measure_statistics(join_errors(count_in_summary(parts)))
    weighted = (  # whatever the units of the training: both kinds of forces are told alike
        (trained.optim.energy_weight, whole.energy_mae, rms.energy),
        (trained.optim.force_weight, whole.force_mae, rms.force),
    )
    loss = sum(weight * mae / scale for weight, mae, scale in weighted if weight > 0)  # an unused part may be NaN
    shared = (set(Evaluation.model_fields) & set(TrainedModel.model_fields)) - {"sources"}  # names there, errors here
    return Evaluation(
        run=name.removeprefix("evaluate/"),
        split=settings.split,
        trained_on=trained.sources,
        loss=loss,
        all=whole,
        sources={part.name: measure_statistics(part.seen) for part in parts},
        tests={part.name: part.source for part in parts if part.is_test},
        unseen={
            part.name: UnseenElements(elements=part.unseen_elements, errors=measure_statistics(part.unseen))
            for part in parts
            if len(part.unseen.energy)
        },
        learning_rate=trained.optim.learning_rate,
        subset=subset,
        layers=layers,
        **{field: getattr(trained, field) for field in shared},
    )


def measure_statistics(signed: SignedErrors) -> Errors:
    """Return the errors over all labels that are not NaN; a label that a source lacks is NaN."""
    energy, forces, natoms = signed
    known = ~np.isnan(energy)
    e, whole, f = energy[known], (energy * natoms)[known], forces[~np.isnan(forces)].astype(np.float64)
    return Errors(
        structures=len(energy),
        atoms=len(forces),
        energy_mae=float(np.abs(e).mean()) if e.size else float("nan"),
        energy_rmse=float(np.sqrt(np.mean(e**2))) if e.size else float("nan"),
        energy_rmse_per_structure=float(np.sqrt(np.mean(whole**2))) if e.size else float("nan"),
        force_mae=float(np.abs(f).mean()) if f.size else float("nan"),
        force_rmse=float(np.sqrt(np.mean(f**2))) if f.size else float("nan"),
    )


if __name__ == "__main__":
    stage_process.run(main)
