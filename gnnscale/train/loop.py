"""The training loop, in sight."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.contract import stage_run
from gnnscale.contract.results import Diverged, Metrics
from gnnscale.contract.settings import TrainSettings
from gnnscale.data.loading import batch_plan
from gnnscale.data.loading import corpus as loader
from gnnscale.data.loading.prefetch import ahead
from gnnscale.machine.rank_env import Ranks
from gnnscale.train import checkpoint
from gnnscale.train.deepspeed_engine import Engine
from gnnscale.train.loss import PARTS, objective, penalties, share
from gnnscale.train.normalisation import Normalisation
from gnnscale.train.process_group import reduce_sum
from gnnscale.train.schedule import decay_begin, rate

LOGGED, VALIDATED = 100, 10  # how often in a run, at least
VALIDATION_BATCH = 64  # structures a rank, at most
KEPT = 2  # checkpoints: the newest and the one before it


class Progress(NamedTuple):
    """What a checkpoint holds besides weights and optimiser: the data order is a function of the step."""

    step: int = 0
    structures_seen: int = 0
    atoms_seen: int = 0
    edges_seen: int = 0
    seconds: float = 0.0
    attempts: int = 0
    diverged: bool = False


class Agreed(NamedTuple):
    """What all ranks know after the one small collective of a step."""

    sums: np.ndarray  # (3,) over the global batch
    stop: bool  # whether any rank was told to; the scheduler's signal may reach only one of them
    save: bool  # by the first rank's clock


class Trainer:
    """One run on one rank: the engine, the data, and where it has got to."""

    def __init__(
        self,
        run: stage_run.Run,
        engine: Engine,
        normalisation: Normalisation,
        train: loader.Corpus,
        validation: loader.Corpus,
        here: Ranks,
        progress: Progress,
    ):
        self.run, self.engine, self.normalisation, self.here = run, engine, normalisation.to(engine.device), here
        self.settings: TrainSettings = run.spec.settings
        self.train, self.validation, self.progress = train, validation, progress
        self.steps = steps(self.settings, train)
        self.decay = decay_begin(self.steps, self.settings.optim)
        self.make = partial(loader.share_of_rank, pin=engine.device.type != "cpu")
        self.saved, self.pause = time.monotonic(), run.spec.runtime.checkpoint_seconds

    def fit(self) -> Progress:
        """From wherever the last whole checkpoint stands to the last step, or to a request to stop."""
        optim, log_every = self.settings.optim, max(1, self.steps // LOGGED)
        validate_every = max(1, self.steps // VALIDATED)
        if self.here.rank == 0:
            self.keep_metrics()
        started = time.monotonic() - self.progress.seconds
        for chosen, micro in self.batches(self.progress.step):
            step, counts = self.progress.step, self.train.labels[chosen].sum(0, dtype=np.int64)
            sums = torch.zeros(len(PARTS), dtype=torch.float64, device=self.engine.device)
            for part in micro:
                mine = self.penalties(*part())
                self.engine.backward(share(mine, counts, optim, self.here.size), last=part is micro[-1])
                sums += mine.detach()
            agreed = self.agree(sums)
            loss, parts = objective(agreed.sums, counts, optim)
            if not math.isfinite(loss):
                return self.diverge("loss", loss, chosen)
            gradient = self.engine.step(rate(step, self.steps, optim), step + 1)
            if not math.isfinite(gradient):
                return self.diverge("gradient", gradient, chosen)
            self.progress = self.counted(chosen, time.monotonic() - started)
            last = self.progress.step == self.steps
            validated = self.validate() if self.progress.step % validate_every == 0 or last else None
            if self.here.rank == 0:
                if self.progress.step % log_every == 0 or validated is not None:
                    self.record(loss, parts, rate(step, self.steps, optim), gradient, validated)
                self.run.progress(self.progress.step, self.steps, loss=loss)
            decaying = self.progress.step == self.decay
            if last or agreed.stop or agreed.save or decaying:
                self.save(pinned=decaying and not last)
            if agreed.stop and not last:
                raise stage_run.Stopped(
                    f"checkpoint at step {self.progress.step} of {self.steps}; run it again to go on"
                )
        return self.progress

    def batches(self, first: int) -> Iterator[tuple[np.ndarray, list[Callable]]]:
        """Every global batch from step `first`, and this rank's share of it in micro-batches, made ahead."""
        return ahead(self.plan(first), partial(self.make, self.train), self.run.spec.runtime.loader_workers)

    def plan(self, first: int) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """What each of these batches consists of; all without asking other ranks."""
        optim, budget = self.settings.optim, self.run.spec.runtime.micro_batch_edges
        for step in range(first, self.steps):
            whole = batch_plan.global_batch(step, len(self.train), optim.batch, self.settings.seed)
            yield whole, self.parts(self.train, whole, budget)

    def parts(self, corpus: loader.Corpus, whole: np.ndarray, budget: int | None) -> list[np.ndarray]:
        """This rank's share of a global batch, in micro-batches."""
        shares = batch_plan.share(corpus.costs(whole), self.here.size)
        edges = corpus.nedges[whole].astype(np.int64)
        return [whole[part] for part in batch_plan.micro_batches(edges, shares, budget, self.here.rank)]

    def penalties(self, graphs: AtomGraphs, labels: Properties) -> Tensor:
        device, optim = self.engine.device, self.settings.optim
        graphs = AtomGraphs(*(t.to(device, non_blocking=True) for t in graphs))
        labels = Properties(*(t.to(device, non_blocking=True) for t in labels))
        return penalties(self.engine, self.normalisation, graphs, labels, optim)

    def agree(self, sums: Tensor) -> Agreed:
        due = self.here.rank == 0 and time.monotonic() - self.saved > self.pause
        wishes = torch.tensor([self.run.stop_requested, due], dtype=sums.dtype, device=sums.device)
        total = reduce_sum(torch.cat((sums, wishes))).cpu().numpy()
        return Agreed(total[: len(PARTS)], bool(total[-2]), bool(total[-1]))

    def diverge(self, what: str, value: float, chosen: np.ndarray) -> Progress:
        """The end of a run whose next step could not be taken: a result, with what there is to find out why."""
        corpus, step = self.train, self.progress.step
        names = tuple(f"{k} {corpus.names[corpus.source[k]]} {formula(corpus, k)}" for k in chosen)
        if self.here.rank == 0:
            said = Diverged(step=step, what=what, value=value, structures=names)
            self.run.write("diverged.json", said.model_dump_json(indent=1) + "\n")
        print(f"step {step}: the {what} is {value}; the run has diverged, see diverged.json", flush=True)
        self.progress = self.progress._replace(diverged=True)
        return self.progress

    def counted(self, chosen: np.ndarray, seconds: float) -> Progress:
        before = self.progress
        return before._replace(
            step=before.step + 1,
            structures_seen=before.structures_seen + len(chosen),
            atoms_seen=before.atoms_seen + int(self.train.natoms[chosen].sum()),
            edges_seen=before.edges_seen + int(self.train.nedges[chosen].sum(dtype=np.int64)),
            seconds=seconds,
        )

    def validate(self) -> float:
        """The objective on the validation split; every rank does as many forward passes, which ZeRO 3 needs."""
        corpus, size, budget = self.validation, self.here.size, self.run.spec.runtime.micro_batch_edges
        sums = torch.zeros(len(PARTS), dtype=torch.float64, device=self.engine.device)
        at_once = min(size * VALIDATION_BATCH, max(size, self.settings.optim.batch))  # never more memory than a step
        chosen = (np.arange(k, min(k + at_once, len(corpus))) for k in range(0, len(corpus), at_once))
        plan = ((None, self.parts(corpus, whole, budget)) for whole in chosen)
        with torch.no_grad(), self.engine.averaged():
            for _, micro in ahead(plan, partial(self.make, corpus), self.run.spec.runtime.loader_workers):
                for part in micro:
                    sums += self.penalties(*part())
        total = reduce_sum(sums).cpu().numpy()
        return objective(total, corpus.labels.sum(0, dtype=np.int64), self.settings.optim)[0]

    def record(self, loss: float, parts: np.ndarray, rate: float, gradient: float, validated: float | None) -> None:
        now = self.progress
        line = Metrics(
            step=now.step,
            loss=loss,
            **dict(zip(PARTS, map(float, parts))),
            rate=rate,
            gradient=gradient,
            structures_seen=now.structures_seen,
            atoms_seen=now.atoms_seen,
            seconds=now.seconds,
            validation=validated,
        )
        with open(self.run.directory / "metrics.jsonl", "a") as file:
            file.write(line.model_dump_json() + "\n")

    def save(self, pinned: bool) -> None:
        """Pinned: a longer training may begin there."""
        began, root = time.monotonic(), self.run.directory / "checkpoints"
        there = root / f"step-{self.progress.step:09d}"
        checkpoint.save(there, self.run.spec.key, self.progress._asdict(), self.engine.layout(), self.engine.tensors())
        if self.here.rank == 0:
            if pinned:
                checkpoint.pin(there)
            checkpoint.keep(root, KEPT)
        self.saved = time.monotonic()  # a large checkpoint on a slow disk must not be all that a run does
        self.pause = max(self.run.spec.runtime.checkpoint_seconds, 9 * (self.saved - began))

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


def epochs(settings: TrainSettings, train: loader.Corpus) -> float:
    """Passes over the data, from what one of them costs where the length is told in FLOPs."""
    return settings.optim.passes(settings.model.flops(train.atoms, train.edges))


def steps(settings: TrainSettings, train: loader.Corpus) -> int:
    return batch_plan.steps_for(len(train), settings.optim.batch, epochs(settings, train))


def formula(corpus: loader.Corpus, k: int) -> str:
    return Atoms(corpus.select(np.array([k])).numbers).get_chemical_formula()
