"""The stage `train`: one model on one subset of the data, on any number of ranks.

python -m gnnscale.stages.train DIRECTORY, alone or through srun or mpiexec. Leaves model.safetensors and model.json.
"""

from __future__ import annotations

import platform

import torch
from safetensors.torch import save

from gnnscale.contract import errors, files, stage_run
from gnnscale.contract.results import TrainedModel
from gnnscale.contract.settings import TrainSettings
from gnnscale.contract.stage_spec import Runtime
from gnnscale.data.loading import corpus
from gnnscale.job import stage_process
from gnnscale.machine.rank_env import Ranks, read_ranks
from gnnscale.models.potential import Potential
from gnnscale.models.registry import build
from gnnscale.train import process_group
from gnnscale.train.engine import Engine
from gnnscale.train.engine_choice import make_engine
from gnnscale.train.loop import Progress, Trainer, count_epochs, count_steps
from gnnscale.train.loss import PARTS, part_weights
from gnnscale.train.normalisation import pool_normalisation
from gnnscale.train.schedule import group_parameters, steps_before_decay
from gnnscale.train.warm_start import find_start


def main(run: stage_run.Run) -> stage_run.Outputs:
    settings = run.require_settings(TrainSettings)
    run.can_checkpoint = read_ranks().size > 1  # ranks stop together: one that left alone would keep the others waiting
    sources = {need.removeprefix("convert/"): path for need, path in run.needs.items() if need.startswith("convert/")}
    cutoff = settings.model.cutoff
    backend, threads = run.spec.runtime.data, run.spec.runtime.threads
    training = corpus.load_corpus(
        sources,
        "train",
        cutoff,
        settings.structures,
        settings.subset_seed,
        backend,
        threads,
        settings.subset,
        hold=True,
    )
    validation = corpus.load_corpus(sources, "validation", cutoff, backend=backend, threads=threads, hold=True)
    check_data(settings, training, validation)
    check_runtime(settings, run.spec.runtime)
    degree = training.edges / max(1, training.atoms)
    ranks = process_group.join_ranks(run.spec.runtime.threads)
    check_ranks(run)
    torch.manual_seed(settings.seed)
    model = build(settings.model, len(sources), degree, run.spec.runtime.edge_chunk)
    model.set_normalisation(*pool_normalisation(training.cards, settings.learned_forces))
    engine, progress = start_engine(run, model, steps_before_decay(count_steps(settings, training), settings.optim))
    print(
        f"{run.spec.id}: {settings.model.parameters(len(sources)):,} parameters, {len(training):,} structures "
        f"with {training.atoms:,} atoms, {degree:.1f} neighbours; {ranks.size} rank(s)",
        flush=True,
    )
    trainer = Trainer(run, engine, training, validation, ranks, progress)
    run.can_checkpoint = True
    try:
        progress = trainer.fit()
    except stage_run.Stopped:  # as all ranks are, together
        corpus.close_corpora(training, validation)
        raise
    outputs = write_model(run, trainer, progress, degree, ranks)
    run.can_checkpoint = False
    corpus.close_corpora(training, validation)
    return outputs


def start_engine(run: stage_run.Run, model: Potential, decay: int) -> tuple[Engine, Progress]:
    """Return what takes the steps, in the state of the checkpoint from which it may begin, and the progress until there."""
    settings, progress = run.require_settings(TrainSettings), Progress()
    found = find_start(run, decay)
    if found:
        read, progress = found.open_reader(), Progress(**found.progress)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(read(f"{name}|weight"))
    groups = group_parameters(model, settings.model.rate_width, settings.optim)
    engine, words = make_engine(model, groups, settings.optim, run.spec.runtime)
    run.facts["step"] = words
    print(f"steps are taken by {words}", flush=True)
    if found:
        engine.load(read, progress.step)
        if progress.engine not in ("", engine.name):
            print(f"the steps until here were taken by {progress.engine}: the same up to rounding", flush=True)
    if found and found.key == run.spec.key:
        progress = progress._replace(attempts=progress.attempts + 1)
        run.earlier_seconds, run.earlier_attempts = progress.seconds, progress.attempts
    elif found:  # the steps of a shorter training count for this one, its time and attempts do not
        progress = progress._replace(attempts=0, seconds=0.0)
        if read_ranks().rank == 0:
            run.write("metrics.jsonl", (found.directory.parent.parent / "metrics.jsonl").read_bytes())
    return engine, progress


def check_data(settings: TrainSettings, train: corpus.Corpus, validation: corpus.Corpus) -> None:
    if settings.structures is not None and len(train) < settings.structures:
        raise errors.UserError(
            f"{settings.structures} training structures asked for, the shards hold {len(train)}",
            "ask for fewer, or convert more",
            kind="data",
        )
    if not len(validation):
        raise errors.UserError(
            "no structure falls into the validation split",
            "raise split.validation, or ask for more structures",
            kind="data",
        )
    if not part_weights(settings.optim).any():
        raise errors.UserError("energy_weight, force_weight and stress_weight are all 0", "set one of them")
    for part, weight, count in zip(PARTS, part_weights(settings.optim), train.labels.sum(0)):
        field = {"forces": "force"}.get(part, part) + "_weight"
        if weight and not count:
            raise errors.UserError(
                f"{field} is {weight:g}, but none of the {len(train)} training structures has a label of its {part}",
                f"set {field}: 0, or add a source that has them",
                kind="data",
            )


def check_runtime(settings: TrainSettings, runtime: Runtime) -> None:
    zero, optim = runtime.zero_stage, settings.optim
    if zero == 3 and settings.model.forces == "gradient":
        # Weights are freed after the forward pass and DeepSpeed's hooks bring them back for one backward pass; the
        # second derivative then meets empty tensors. Keeping all of them would be ZeRO 2.
        raise errors.UserError(
            "ZeRO 3 cannot train gradient forces: it frees weights that their second derivative needs",
            "set zero_stage: 2, which shards all but the weights",
        )
    if zero and optim.optimizer == "muon":
        raise errors.UserError("muon needs whole matrices, which ZeRO cuts", "set zero_stage: 0, or optimizer: adamw")
    if zero == 3 and optim.ema:
        raise errors.UserError(
            "a running mean of the weights (ema) is kept whole on every rank, which ZeRO 3 is to avoid",
            "set ema: 0, or zero_stage: 2",
        )


def check_ranks(run: stage_run.Run) -> None:
    """Raise a UserError if ranks read different specs: they would wait for each other for ever, or train nonsense."""
    own_digest = files.sha256(run.directory / "spec.json")
    specs = process_group.gather((own_digest, run.spec.id, platform.node()))
    first_digest, first_id, first_node = specs[0]
    for rank, (digest, spec_id, node) in enumerate(specs):
        if digest != first_digest:
            raise errors.UserError(
                f"rank {rank} on {node} was started with another spec.json ({spec_id}) than rank 0 on "
                f"{first_node} ({first_id})",
                "give every rank the same directory, on a file system that all nodes see",
            )


def write_model(
    run: stage_run.Run, trainer: Trainer, progress: Progress, degree: float, ranks: Ranks
) -> stage_run.Outputs:
    """Write the weights, as a file that needs no unpickling, and the settings with which the model is rebuilt."""
    settings, sources = trainer.settings, trainer.train.names
    trained = TrainedModel(
        model=settings.model,
        sources=sources,
        average_degree=degree,
        diverged=progress.diverged,
        parameters=settings.model.parameters(len(sources)),
        body_parameters=settings.model.body_parameters(),
        structures=len(trainer.train),
        atoms=trainer.train.atoms,
        epochs=count_epochs(settings, trainer.train),
        steps=progress.step,
        structures_seen=progress.structures_seen,
        atoms_seen=progress.atoms_seen,
        edges_seen=progress.edges_seen,
        flops=settings.model.flops(progress.atoms_seen, progress.edges_seen),
        seed=settings.seed,
        optim=settings.optim,
    )
    with trainer.engine.averaged():
        state = trainer.engine.weights()
        if ranks.rank == 0:
            run.write("model.safetensors", save({name: tensor.contiguous() for name, tensor in state.items()}))
            run.write("model.json", trained.model_dump_json(indent=1) + "\n")
    values = {
        "parameters": trained.parameters,
        "structures": trained.structures,
        "steps": progress.step,
        "flops": trained.flops,
        "train_seconds": progress.seconds,
        "diverged": progress.diverged,
    }
    also = ["metrics.jsonl", *(["diverged.json"] if progress.diverged else [])]
    return stage_run.Outputs(files=["model.safetensors", "model.json"], values=values, also=also)


if __name__ == "__main__":
    stage_process.run(main)
