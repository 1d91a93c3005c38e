"""The stage `train`: one model on one subset of the data, under DeepSpeed, on however many ranks it was started with.

python -m gnnscale.train DIRECTORY, alone or through srun or mpiexec. Leaves model.safetensors and model.json.
"""

from __future__ import annotations

import math

import torch
from ase.data import atomic_numbers
from safetensors.torch import save

from gnnscale import stage
from gnnscale.data import loader
from gnnscale.models import build
from gnnscale.specs import ShardCard, TrainedModel, TrainSettings
from gnnscale.train import engine
from gnnscale.train.loop import Normalisation, Progress, Trainer
from gnnscale.train.schedule import parameter_groups


def main(run: stage.Run) -> stage.Outputs:
    settings: TrainSettings = run.spec.settings
    sources = {need.removeprefix("convert/"): path for need, path in run.needs.items() if need.startswith("convert/")}
    cutoff = settings.model.cutoff
    train = loader.load(sources, "train", cutoff, settings.structures, settings.subset_seed)
    validation = loader.load(sources, "validation", cutoff)
    if settings.structures is not None and len(train) < settings.structures:
        raise stage.Refusal(f"{settings.structures} training structures asked for, the shards hold {len(train)}",
                            "ask for fewer, or convert more", "data")  # fmt: skip
    normalisation, degree = pooled(train.cards), len(train.senders) / max(1, len(train.packed.numbers))
    here = engine.join(run.spec.runtime.threads)
    torch.manual_seed(settings.seed)
    model = build(settings.model, len(sources), degree)
    model.set_normalisation(*normalisation)
    groups = parameter_groups(model, settings.model.width, settings.optim)
    under = engine.Engine(model, groups, settings.optim, run.spec.runtime)
    print(f"{run.spec.id}: {settings.model.parameters(len(sources)):,} parameters, {len(train):,} structures "
          f"with {len(train.packed.numbers):,} atoms, {degree:.1f} neighbours; {here.size} rank(s)", flush=True)  # fmt: skip
    trainer = Trainer(run, under, normalisation, train, validation, here.rank, here.size)
    run.can_checkpoint = True
    progress = trainer.fit()
    run.can_checkpoint = False
    outputs = write(run, model, trainer, progress, degree)
    engine.leave()
    return outputs


def pooled(cards: tuple[ShardCard, ...]) -> Normalisation:
    """Scales over all sources, from the cards alone: they know their training split."""
    references = torch.zeros(len(cards), 119, dtype=torch.float64)
    for index, card in enumerate(cards):
        for symbol, energy in card.references.items():
            references[index, atomic_numbers[symbol]] = energy
    structures = [card.counts["train"].structures for card in cards]
    atoms = [card.counts["train"].atoms for card in cards]
    energy = sum(n * card.energy_rms**2 for n, card in zip(structures, cards)) / sum(structures)
    forces = sum(n * card.force_rms**2 for n, card in zip(atoms, cards)) / sum(atoms)
    return Normalisation(references, math.sqrt(energy), math.sqrt(forces))


def write(run: stage.Run, model: torch.nn.Module, trainer: Trainer, progress: Progress, degree: float) -> stage.Outputs:
    """The model as a file that needs no unpickling, and what it must be told to be rebuilt."""
    settings, sources = trainer.settings, trainer.train.names
    trained = TrainedModel(
        model=settings.model, sources=sources, average_degree=degree, diverged=progress.diverged,
        parameters=settings.model.parameters(len(sources)), body_parameters=settings.model.body_parameters(),
        structures=len(trainer.train), atoms=len(trainer.train.packed.numbers), epochs=settings.optim.epochs,
        steps=progress.step, structures_seen=progress.structures_seen, atoms_seen=progress.atoms_seen,
        edges_seen=progress.edges_seen, flops=settings.model.flops(progress.atoms_seen, progress.edges_seen),
        seed=settings.seed, optim=settings.optim,
    )  # fmt: skip
    if trainer.rank == 0:
        run.write("model.safetensors", save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))
        run.write("model.json", trained.model_dump_json(indent=1) + "\n")
    values = {
        "parameters": trained.parameters, "structures": trained.structures, "steps": progress.step,
        "flops": trained.flops, "train_seconds": progress.seconds, "diverged": progress.diverged,
    }  # fmt: skip
    return stage.Outputs(files=["model.safetensors", "model.json"], values=values, also=["metrics.jsonl"])


if __name__ == "__main__":
    stage.run(main)
