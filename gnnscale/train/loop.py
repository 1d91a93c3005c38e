"""The training loop: batches, steps, checkpoints, validation and the end of a run that diverges."""

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

from gnnscale.contract import stage_run
from gnnscale.contract.results import Diverged, Metrics
from gnnscale.contract.settings import TrainSettings
from gnnscale.data.loading import batch_plan
from gnnscale.data.loading.corpus import Corpus, make_batch_of_share
from gnnscale.data.loading.prefetch import make_ahead
from gnnscale.machine.rank_env import Ranks
from gnnscale.train import checkpoint
from gnnscale.train.engine import Engine
from gnnscale.train.loss import PARTS, compute_loss
from gnnscale.train.process_group import reduce_sum
from gnnscale.train.schedule import learning_rate, steps_before_decay

MIN_LOG_LINES, MIN_VALIDATIONS = 100, 10  # of a run that has as many steps
MAX_VALIDATION_BATCH = 64  # structures of a rank
KEPT_CHECKPOINTS = 2  # the newest and the one before it


class Progress(NamedTuple):
    """Everything in a checkpoint besides weights and moments: the order of the data follows from the step."""

    step: int = 0
    structures_seen: int = 0
    atoms_seen: int = 0
    edges_seen: int = 0
    seconds: float = 0.0
    attempts: int = 0
    diverged: bool = False
    engine: str = ""  # the name of the one that took the last step


class Agreement(NamedTuple):
    """Sums and decisions that all ranks share after the one small collective of a step."""

    sums: np.ndarray  # (3,) over the global batch
    stop: bool  # a rank has got the signal to stop; the scheduler's may reach only one of them
    save: bool  # by the first rank's clock


class Trainer:
    """One run on one rank: the engine, the data and the progress."""

    def __init__(
        self,
        run: stage_run.Run,
        engine: Engine,
        train: Corpus,
        validation: Corpus,
        ranks: Ranks,
        progress: Progress,
    ):
        self.run, self.engine, self.ranks = run, engine, ranks
        self.settings = run.require_settings(TrainSettings)
        self.train, self.validation, self.progress = train, validation, progress
        self.steps = count_steps(self.settings, train)
        self.decay = steps_before_decay(self.steps, self.settings.optim)
        self.make_batch = partial(make_batch_of_share, pin=engine.device.type != "cpu")
        self.saved_at, self.save_interval = time.monotonic(), run.spec.runtime.checkpoint_seconds

    def fit(self) -> Progress:
        """Train from the last whole checkpoint to the last step, or to a request to stop."""
        optim, log_every = self.settings.optim, max(1, self.steps // MIN_LOG_LINES)
        validate_every = max(1, self.steps // MIN_VALIDATIONS)
        if self.ranks.rank == 0:
            self.truncate_metrics()
        started = time.monotonic() - self.progress.seconds
        for chosen, micro in self.make_batches(self.progress.step):
            step, counts = self.progress.step, self.train.labels[chosen].sum(0, dtype=np.int64)
            agreed = self.agree(self.engine.learn(micro, counts))
            loss, parts = compute_loss(agreed.sums, counts, optim)
            if not math.isfinite(loss):
                return self.end_diverged("loss", loss, chosen)
            gradient = self.engine.step(learning_rate(step, self.steps, optim), step + 1)
            if not math.isfinite(gradient):
                return self.end_diverged("gradient", gradient, chosen)
            self.progress = self.advance_progress(chosen, time.monotonic() - started)
            last = self.progress.step == self.steps
            validated = self.validate() if self.progress.step % validate_every == 0 or last else None
            if self.ranks.rank == 0:
                if self.progress.step % log_every == 0 or validated is not None:
                    self.log_metrics(loss, parts, learning_rate(step, self.steps, optim), gradient, validated)
                self.run.report_progress(self.progress.step, self.steps, loss=loss)
            decaying = self.progress.step == self.decay
            if last or agreed.stop or agreed.save or decaying:
                self.save_checkpoint(pinned=decaying and not last)
            if agreed.stop and not last:
                step = self.progress.step
                raise stage_run.Stopped(f"checkpoint at step {step} of {self.steps}; run it again to continue")
        return self.progress

    def make_batches(self, first: int) -> Iterator[tuple[np.ndarray, list[Callable]]]:
        """Make every global batch from step `first`, and this rank's share of it in micro-batches, ahead of its use."""
        make = partial(self.make_batch, self.train)
        return make_ahead(self.choose_batches(first), make, self.count_workers(self.train))

    def count_workers(self, corpus: Corpus) -> int | None:
        """Return the threads that make batches: none where they would take more of the CPUs' time than they hide."""
        wanted = self.run.spec.runtime.loader_workers
        return 0 if wanted is None and corpus.held and self.engine.device.type == "cpu" else wanted

    def choose_batches(self, first: int) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Choose the structures of these batches; every rank chooses alike, without exchange."""
        optim, budget = self.settings.optim, self.run.spec.runtime.micro_batch_edges
        for step in range(first, self.steps):
            batch = batch_plan.global_batch(step, len(self.train), optim.batch, self.settings.seed)
            yield batch, self.split_share(self.train, batch, budget)

    def split_share(self, corpus: Corpus, batch: np.ndarray, budget: int | None) -> list[np.ndarray]:
        """Return this rank's share of a global batch, in micro-batches."""
        shares = batch_plan.divide_batch(corpus.costs(batch), self.ranks.size)
        edges = corpus.nedges[batch].astype(np.int64)
        return [batch[part] for part in batch_plan.micro_batches(edges, shares, budget, self.ranks.rank)]

    def agree(self, sums: Tensor) -> Agreement:
        due = self.ranks.rank == 0 and time.monotonic() - self.saved_at > self.save_interval
        if self.ranks.size == 1:
            return Agreement(sums.cpu().numpy(), self.run.stop_requested, due)
        requests = torch.tensor([self.run.stop_requested, due], dtype=sums.dtype, device=sums.device)
        total = reduce_sum(torch.cat((sums, requests))).cpu().numpy()
        return Agreement(total[: len(PARTS)], bool(total[-2]), bool(total[-1]))

    def end_diverged(self, quantity: str, value: float, chosen: np.ndarray) -> Progress:
        """End a run whose next step cannot be taken: a result, with the batch to find out why."""
        corpus, step = self.train, self.progress.step
        names = tuple(f"{k} {corpus.names[corpus.source[k]]} {chemical_formula(corpus, k)}" for k in chosen)
        if self.ranks.rank == 0:
            report = Diverged(step=step, what=quantity, value=value, structures=names)
            self.run.write("diverged.json", report.model_dump_json(indent=1) + "\n")
        print(f"step {step}: the {quantity} is {value}; the run has diverged, see diverged.json", flush=True)
        self.progress = self.progress._replace(diverged=True)
        return self.progress

    def advance_progress(self, chosen: np.ndarray, seconds: float) -> Progress:
        before = self.progress
        return before._replace(
            step=before.step + 1,
            structures_seen=before.structures_seen + len(chosen),
            atoms_seen=before.atoms_seen + int(self.train.natoms[chosen].sum()),
            edges_seen=before.edges_seen + int(self.train.nedges[chosen].sum(dtype=np.int64)),
            seconds=seconds,
            engine=self.engine.name,
        )

    def validate(self) -> float:
        """Return the loss on the validation split; all ranks make equally many forward passes, which ZeRO 3 needs."""
        corpus, size, budget = self.validation, self.ranks.size, self.run.spec.runtime.micro_batch_edges
        sums = torch.zeros(len(PARTS), dtype=torch.float64, device=self.engine.device)
        # never more memory than a step
        at_once = min(size * MAX_VALIDATION_BATCH, max(size, self.settings.optim.batch))
        batches = (np.arange(k, min(k + at_once, len(corpus))) for k in range(0, len(corpus), at_once))
        plan = ((None, self.split_share(corpus, batch, budget)) for batch in batches)
        with torch.no_grad(), self.engine.averaged():
            for _, micro in make_ahead(plan, partial(self.make_batch, corpus), self.count_workers(corpus)):
                for part in micro:
                    sums += self.engine.penalties(*part())
        total = reduce_sum(sums).cpu().numpy()
        return compute_loss(total, corpus.labels.sum(0, dtype=np.int64), self.settings.optim)[0]

    def log_metrics(
        self, loss: float, parts: np.ndarray, rate: float, gradient: float, validated: float | None
    ) -> None:
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

    def save_checkpoint(self, pinned: bool) -> None:
        """Save a checkpoint; from a pinned one a longer training may begin."""
        began, root = time.monotonic(), self.run.directory / "checkpoints"
        directory = root / f"step-{self.progress.step:09d}"
        checkpoint.save(
            directory, self.run.spec.key, self.progress._asdict(), self.engine.layout(), self.engine.tensors()
        )
        if self.ranks.rank == 0:
            if pinned:
                checkpoint.pin(directory)
            checkpoint.remove_older(root, KEPT_CHECKPOINTS)
        self.saved_at = time.monotonic()  # a large checkpoint on a slow disk must not be all that a run does
        self.save_interval = max(self.run.spec.runtime.checkpoint_seconds, 9 * (self.saved_at - began))

    def truncate_metrics(self) -> None:
        """Drop the lines beyond the checkpoint and a last one that was cut off: those steps are taken again."""
        path, kept = self.run.directory / "metrics.jsonl", []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                metrics = Metrics.model_validate_json(line)
            except ValueError:
                break
            if metrics.step <= self.progress.step:
                kept.append(metrics)
        self.run.write("metrics.jsonl", "".join(m.model_dump_json() + "\n" for m in kept))


def count_epochs(settings: TrainSettings, train: Corpus) -> float:
    """Return the passes over the data, from the cost of one where the length is given in FLOPs."""
    return settings.optim.count_epochs(settings.model.flops(train.atoms, train.edges))


def count_steps(settings: TrainSettings, train: Corpus) -> int:
    return batch_plan.steps_for(len(train), settings.optim.batch, count_epochs(settings, train))


def chemical_formula(corpus: Corpus, k: int) -> str:
    return Atoms(corpus.select(np.array([k])).numbers).get_chemical_formula()
