"""The training loop, in sight."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gnnscale import stage
from gnnscale.data import batches, loader
from gnnscale.graph import AtomGraphs, Properties, atoms_per_structure
from gnnscale.specs import Metrics, OptimSettings, TrainSettings
from gnnscale.train.engine import Engine, checkpoint_is_whole, reduce_sum
from gnnscale.train.schedule import rate

LOGGED, VALIDATED = 100, 10  # how often in a run, at least
EVALUATION_BATCH = 64  # structures


class Sums(NamedTuple):
    """Absolute errors of a batch, summed, with the numbers of labels in them; these add up over batches and ranks."""

    energy: Tensor  # sum over structures of |error of energy per atom| / energy scale
    structures: Tensor
    forces: Tensor  # sum over force components of |error| / force scale
    components: Tensor

    def objective(self, optim: OptimSettings) -> tuple[float, float, float]:
        """(loss, its energy part, its force part), means over whatever was summed"""
        energy = float(self.energy) / max(1.0, float(self.structures))
        forces = float(self.forces) / max(1.0, float(self.components))
        return optim.energy_weight * energy + optim.force_weight * forces, energy, forces


class Progress(NamedTuple):
    """What a checkpoint holds besides weights and optimiser: the data order is a function of the step."""

    step: int = 0
    structures_seen: int = 0
    atoms_seen: int = 0
    edges_seen: int = 0
    seconds: float = 0.0
    attempts: int = 0
    diverged: bool = False


def errors(potential: Callable, normalisation: Normalisation, graphs: AtomGraphs, labels: Properties) -> Sums:
    """Labels that a source lacks are NaN and count for nothing."""
    predicted = potential(graphs)
    natoms = atoms_per_structure(graphs)
    wanted = normalisation(graphs, labels, natoms)
    energy = ((predicted.energy - wanted.energy) / natoms).abs()
    forces = (predicted.forces - wanted.forces).abs()
    has_energy, has_forces = wanted.energy.isfinite(), wanted.forces.isfinite()
    return Sums(
        torch.where(has_energy, energy, 0).sum(),
        has_energy.sum(),
        torch.where(has_forces, forces, 0).sum(),
        has_forces.sum(),
    )


class Normalisation(NamedTuple):
    """From labels in eV to what the model learns: interaction energies and forces of order one."""

    references: Tensor  # (sources, 119) float64, eV
    energy_scale: float  # eV/atom
    force_scale: float  # eV/Angstrom

    def __call__(self, graphs: AtomGraphs, labels: Properties, natoms: Tensor) -> Properties:
        of_atoms = self.references[graphs.source[graphs.structure], graphs.numbers]  # (A,)
        reference = torch.zeros(len(natoms), dtype=torch.float64, device=of_atoms.device)
        reference.index_add_(0, graphs.structure, of_atoms)
        interaction = (labels.energy - reference) / self.energy_scale
        return Properties(interaction.float(), labels.forces / self.force_scale)


class Trainer:
    """One run on one rank: the engine, the data, and where it has got to."""

    def __init__(self, run: stage.Run, engine: Engine, normalisation: Normalisation, train: loader.Corpus,
                 validation: loader.Corpus, rank: int, size: int):  # fmt: skip
        self.run, self.engine, self.normalisation = run, engine, normalisation
        self.settings: TrainSettings = run.spec.settings
        self.train, self.validation, self.rank, self.size = train, validation, rank, size
        self.steps = batches.steps_for(len(train), self.settings.optim.batch, self.settings.optim.epochs)
        self.progress = Progress()

    def fit(self) -> Progress:
        """From wherever the last whole checkpoint stands to the last step, or to a request to stop."""
        optim, log_every = self.settings.optim, max(1, self.steps // LOGGED)
        validate_every = max(1, self.steps // VALIDATED)
        self.restore()
        started = time.monotonic() - self.progress.seconds
        saved = time.monotonic()
        for graphs, labels, chosen in self.batches(self.progress.step):
            step = self.progress.step
            sums = errors(self.engine, self.normalisation, graphs, labels)
            total = Sums(*reduce_sum(torch.stack([x.detach().double() for x in sums])))
            objective, energy, forces = total.objective(optim)
            if not math.isfinite(objective):
                self.progress = self.progress._replace(diverged=True)
                print(f"step {step}: the loss is {objective}; the run has diverged", flush=True)
                break
            norm = self.engine.step(self.loss(sums, total), rate(step, self.steps, optim))
            self.progress = self.counted(chosen, time.monotonic() - started)
            last = self.progress.step == self.steps
            validated = self.validate() if self.progress.step % validate_every == 0 or last else None
            if self.progress.step % log_every == 0 or validated is not None:
                self.record(objective, energy, forces, rate(step, self.steps, optim), norm, validated)
            self.run.progress(self.progress.step, self.steps, loss=objective) if self.rank == 0 else None
            stop = self.stop_requested()
            if last or stop or time.monotonic() - saved > self.run.spec.runtime.checkpoint_seconds:
                self.save()
                saved = time.monotonic()
            if stop and not last:
                raise stage.Stopped(f"checkpoint at step {self.progress.step} of {self.steps}; run it again to go on")
        return self.progress

    def loss(self, sums: Sums, total: Sums) -> Tensor:
        """This rank's share of the objective over the *global* batch.

        DeepSpeed averages gradients over ranks, so sums are divided by global counts and multiplied by the number of
        ranks; a mean of per-rank means would weigh atoms of small shares more (30 % in a measured case).
        """
        optim = self.settings.optim
        energy = optim.energy_weight * sums.energy / total.structures.clamp(min=1).to(sums.energy.dtype)
        return self.size * (energy + optim.force_weight * sums.forces / total.components.clamp(min=1).to(energy.dtype))

    def batches(self, first: int) -> Iterator[tuple[AtomGraphs, Properties, np.ndarray]]:
        """This rank's share of every global batch from step `first`, with the whole batch's indices."""
        costs = self.train.costs
        for step in range(first, self.steps):
            whole = batches.global_batch(step, len(self.train), self.settings.optim.batch, self.settings.seed)
            mine = whole[batches.share(costs[whole], self.size)[self.rank]] if self.size > 1 else whole
            yield *self.on_device(mine, self.train), whole

    def on_device(self, chosen: np.ndarray, corpus: loader.Corpus) -> tuple[AtomGraphs, Properties]:
        graphs, labels = loader.batch(corpus, chosen)
        device = self.engine.device
        return AtomGraphs(*(t.to(device) for t in graphs)), Properties(*(t.to(device) for t in labels))

    def counted(self, chosen: np.ndarray, seconds: float) -> Progress:
        before, natoms, nedges = self.progress, np.diff(self.train.ptr), np.diff(self.train.edge_ptr)
        return before._replace(
            step=before.step + 1,
            structures_seen=before.structures_seen + len(chosen),
            atoms_seen=before.atoms_seen + int(natoms[chosen].sum()),
            edges_seen=before.edges_seen + int(nedges[chosen].sum()),
            seconds=seconds,
        )

    def validate(self) -> float:
        """The objective on the validation split; each rank takes every size-th batch."""
        parts = []
        for begin in range(self.rank * EVALUATION_BATCH, len(self.validation), self.size * EVALUATION_BATCH):
            chosen = np.arange(begin, min(begin + EVALUATION_BATCH, len(self.validation)))
            with torch.no_grad():
                sums = errors(self.engine, self.normalisation, *self.on_device(chosen, self.validation))
            parts.append(torch.stack([x.double() for x in sums]))
        mine = torch.stack(parts).sum(0) if parts else torch.zeros(len(Sums._fields), dtype=torch.float64)
        return Sums(*reduce_sum(mine)).objective(self.settings.optim)[0]

    def record(
        self, objective: float, energy: float, forces: float, rate: float, norm: float, validated: float | None
    ) -> None:
        now = self.progress
        line = Metrics(
            step=now.step, loss=objective, energy=energy, forces=forces, rate=rate, gradient=norm,
            structures_seen=now.structures_seen, atoms_seen=now.atoms_seen, seconds=now.seconds, validation=validated,
        )  # fmt: skip
        if self.rank == 0:
            with open(self.run.directory / "metrics.jsonl", "a") as file:
                file.write(line.model_dump_json() + "\n")

    def stop_requested(self) -> bool:
        """Agreed by all ranks: the scheduler's signal may reach only one of them."""
        return bool(reduce_sum(torch.tensor(float(self.run.stop_requested))))

    # ------------------------------------------------------------------------------------------------ checkpoints
    def checkpoints(self) -> list[Path]:
        return sorted((self.run.directory / "checkpoints").glob("step-*"))

    def save(self) -> None:
        self.engine.save(self.run.directory / "checkpoints" / f"step-{self.progress.step:09d}", self.progress._asdict())
        if self.rank == 0:
            for old in self.checkpoints()[:-2]:  # the newest and the one before it are kept
                shutil.rmtree(old)

    def restore(self) -> None:
        """Go back to the newest whole checkpoint; a torn one is passed over, and said so."""
        if self.rank == 0:
            for torn in (self.run.directory / "checkpoints").glob(".*.tmp"):
                shutil.rmtree(torn)
        for directory in reversed(self.checkpoints()):
            if not checkpoint_is_whole(directory):
                print(f"{directory.name} is torn; trying the one before it", flush=True)
                continue
            self.progress = Progress(**self.engine.restore(directory))
            self.progress = self.progress._replace(attempts=self.progress.attempts + 1)
            print(f"going on from step {self.progress.step} of {self.steps}", flush=True)
            break
        self.run.earlier_seconds, self.run.earlier_attempts = self.progress.seconds, self.progress.attempts
        if self.rank == 0:
            self.keep_metrics()

    def keep_metrics(self) -> None:
        """Drop the lines beyond the checkpoint, and a last one that was cut off: those steps are done again."""
        path, kept = self.run.directory / "metrics.jsonl", []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                metrics = Metrics.model_validate_json(line)
            except ValueError:
                break
            if metrics.step <= self.progress.step:
                kept.append(metrics)
        self.run.write("metrics.jsonl", "".join(m.model_dump_json() + "\n" for m in kept))
