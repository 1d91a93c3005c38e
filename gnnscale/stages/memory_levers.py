"""The stage `levers`: what each lever for memory saves and costs, on one network and one batch of a study's data.

python -m gnnscale.stages.memory_levers DIRECTORY, alone or through srun or mpiexec. Leaves levers.json.

All ways are taken in turn by the same processes, so that their times are of the same nodes in the same minutes. Memory is
that of all tensors, from the first weight to the end of a second step, when all moments are there: what an allocator of a
GPU says, and free of the interpreter and of what an earlier way left to the process.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.contract import errors, stage_run
from gnnscale.contract.results import Lever, LeverTable
from gnnscale.contract.scaling_results import Estimate
from gnnscale.contract.settings import LeverSettings, OptimSettings
from gnnscale.contract.stage_spec import Runtime
from gnnscale.data.loading import batch_plan
from gnnscale.data.loading import corpus as loader
from gnnscale.job import stage_process
from gnnscale.machine import accelerator
from gnnscale.models.registry import build
from gnnscale.train import deepspeed_engine, process_group
from gnnscale.train.loss import objective, penalties, share
from gnnscale.train.normalisation import pooled
from gnnscale.train.schedule import parameter_groups

TURNS = 3
RATE = 1e-4  # small: the second loss is to show the first gradient, not to diverge


class Way(NamedTuple):
    name: str
    runtime: Runtime
    precision: str = "fp32"


class Task(NamedTuple):
    """What all ways do, as one rank sees it."""

    settings: LeverSettings
    corpus: loader.Corpus
    graphs: AtomGraphs
    labels: Properties
    counts: np.ndarray  # (3,) labels of the whole batch
    ranks: int


class Step:
    """A network under DeepSpeed that takes the step of a way."""

    def __init__(self, task: Task, way: Way):
        torch.manual_seed(0)
        self.task, corpus = task, task.corpus
        self.optim = OptimSettings(precision=way.precision)
        model = build(
            task.settings.model, len(corpus.names), corpus.edges / max(1, corpus.atoms), way.runtime.edge_chunk
        )
        normalisation = pooled(corpus.cards)
        model.set_normalisation(*normalisation)
        groups = parameter_groups(model, task.settings.model.width, self.optim)
        self.engine, self.number = deepspeed_engine.Engine(model, groups, self.optim, way.runtime), 0
        self.normalisation = normalisation.to(self.engine.device)

    def __call__(self) -> float:
        """The loss over the whole batch, before the weights are changed."""
        device, task, self.number = self.engine.device, self.task, self.number + 1
        graphs = AtomGraphs(*(t.to(device) for t in task.graphs))
        labels = Properties(*(t.to(device) for t in task.labels))
        sums = penalties(self.engine, self.normalisation, graphs, labels, self.optim)
        self.engine.backward(share(sums, task.counts, self.optim, task.ranks), last=True)
        whole = process_group.reduce_sum(sums.detach()).cpu().numpy()
        self.engine.step(RATE, self.number)
        return objective(whole, task.counts, self.optim)[0]


def main(run: stage_run.Run) -> stage_run.Outputs:
    here = process_group.join(run.spec.runtime.threads)
    task, chosen = prepare(run, here.size, here.rank)
    table = ways(run.spec.runtime, task.settings, int(task.graphs.senders.numel()))
    print(f"{run.spec.id}: {len(table)} ways to take one step; {here.size} rank(s)", flush=True)
    total, done = (1 + TURNS) * len(table), 0

    def told(way: Way) -> None:
        nonlocal done
        done += 1
        if here.rank == 0:
            run.progress(done, total)
            print(f"{done} of {total}: {way.name}", flush=True)

    peaks, losses = [], []
    for way in table:
        peak, loss = fullest(task, way)
        peaks.append(max(process_group.gathered(peak)))
        losses.append(loss)
        told(way)
    seconds: list[list[float]] = [[] for _ in table]
    for _ in range(TURNS):
        for k, way in enumerate(table):
            seconds[k].append(max(process_group.gathered(timed(task, way))))
            told(way)
    found = LeverTable(
        model=task.settings.model,
        parameters=task.settings.model.parameters(len(task.corpus.names)),
        ranks=here.size,
        device=device(),
        structures=len(chosen),
        atoms=int(task.corpus.natoms[chosen].sum()),
        edges=int(task.corpus.nedges[chosen].sum(dtype=np.int64)),
        ways=tuple(
            Lever(
                name=way.name,
                runtime=way.runtime,
                precision=way.precision,
                peak_bytes=peak,
                loss=loss,
                seconds=statistics.median(mine),
                relative=relative(mine, seconds[0]),
            )
            for way, peak, loss, mine in zip(table, peaks, losses, seconds, strict=True)
        ),
    )
    if here.rank == 0:
        run.write("levers.json", found.model_dump_json(indent=1) + "\n")
    return stage_run.Outputs(files=["levers.json"], values={"ways": len(table), "ranks": here.size})


def prepare(run: stage_run.Run, size: int, rank: int) -> tuple[Task, np.ndarray]:
    """The first batch that a training would take, and this rank's share of it."""
    settings: LeverSettings = run.spec.settings
    sources = {need.removeprefix("convert/"): path for need, path in run.needs.items() if need.startswith("convert/")}
    corpus = loader.load(sources, "train", settings.model.cutoff, threads=run.spec.runtime.threads)
    if len(corpus) < settings.batch:
        raise errors.Refusal(
            f"a batch of {settings.batch} structures asked for, the shards hold {len(corpus)}",
            "ask for a smaller batch, or convert more",
            "data",
        )
    chosen = batch_plan.global_batch(0, len(corpus), settings.batch, 0)
    mine = batch_plan.share(corpus.costs(chosen), size)[rank]
    graphs, labels = loader.share_of_rank(corpus, chosen[mine])
    counts = corpus.labels[chosen].sum(0, dtype=np.int64)
    return Task(settings, corpus, graphs, labels, counts, size), chosen


def ways(runtime: Runtime, settings: LeverSettings, edges: int) -> list[Way]:
    """As arXiv 2504.08112 adds them, checkpointing and then ZeRO; and edges in chunks in the place of checkpointing."""
    plain = runtime.model_copy(update={"edge_chunk": None})
    chunk = min(runtime.edge_chunk or edges, max(1, edges // 8))  # in a small batch too there are several
    chunked = plain.model_copy(update={"edge_chunk": chunk})
    layers = plain.model_copy(update={"activation_checkpointing": True})
    found = [Way("plain", plain)]
    for name, base in (("each layer checkpointed", layers), (f"edges in chunks of {chunk:,}", chunked)):
        if base is layers and settings.model.forces == "gradient":
            continue  # of little use where forces are derivatives: their graph is kept
        if base is chunked and settings.model.form == "paper":
            continue  # which keeps all edges, as it did
        found.append(Way(name, base))
        for zero in (1, 2) if runtime.ranks > 1 else ():
            found.append(Way(f"{name}, ZeRO {zero}", base.model_copy(update={"zero_stage": zero})))
    last = found[-1]
    return [*found, Way(f"{last.name}, bf16", last.runtime, "bf16")]


# ---------------------------------------------------------------------------------------------------------- one way
def fullest(task: Task, way: Way) -> tuple[int, float]:
    """Most bytes of tensors at once from nothing to the end of a second step; and the loss before that step."""
    losses = []

    def two_steps() -> None:
        step = Step(task, way)
        losses.extend((step(), step()))

    return peak_bytes(two_steps), losses[-1]


def timed(task: Task, way: Way) -> float:
    """Seconds of a step, after one that is not counted."""
    step, found = Step(task, way), []
    step()
    for _ in range(task.settings.steps):
        accelerator.wait()
        began = time.perf_counter()
        step()
        accelerator.wait()
        found.append(time.perf_counter() - began)
    del step
    gc.collect()
    return statistics.median(found)


def peak_bytes(run: Callable[[], object]) -> int:
    """Measure the most bytes of tensors that live at once while it runs, above those before."""
    return tensor_bytes(run).peak


class TensorBytes(NamedTuple):
    """Bytes of tensors above those before: what lives when it has ended, and the most that lived at once."""

    kept: int
    peak: int


def tensor_bytes(run: Callable[[], object]) -> TensorBytes:
    """Count the tensors that live while it runs: no pages of libraries, and nothing that an allocator holds back."""
    with freed_anywhere():
        gc.collect()  # so that it frees nothing that was garbage before
        return (_on_host if accelerator.kind() == "cpu" else _on_device)(run)


def _on_device(run: Callable[[], object]) -> TensorBytes:
    memory = accelerator.module(accelerator.kind())
    memory.empty_cache()
    memory.reset_peak_memory_stats()
    before = memory.memory_allocated()
    run()
    gc.collect()
    accelerator.wait()
    return TensorBytes(memory.memory_allocated() - before, memory.max_memory_allocated() - before)


def _on_host(run: Callable[[], object]) -> TensorBytes:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
        gc.collect()
    tree = profiler.profiler.kineto_results.experimental_event_tree()
    found = sorted(allocations(tree), key=lambda each: each.time)
    if not found:
        return TensorBytes(0, 0)
    before, levels = found[0].level - found[0].change, [each.level for each in found]
    return TensorBytes(levels[-1] - before, max(0, max(levels) - before))


class Allocation(NamedTuple):
    """A tensor's memory taken or given back: when, the bytes of all tensors from then on, and by how much they changed."""

    time: int
    level: int
    change: int


def allocations(events: list) -> Iterator[Allocation]:
    """Give what the profiler saw of tensors, from its tree of events."""
    for event in events:
        if event.typed[0].name == "Allocation":
            yield Allocation(event.start_time_ns, event.extra_fields.total_allocated, event.extra_fields.alloc_size)
        yield from allocations(event.children)


@contextmanager
def freed_anywhere() -> Iterator[None]:
    """Let the count know what other threads free, as gloo's do at times with what was reduced.

    The profiler sees its own thread alone, and would take such a tensor for one that lives on.
    """
    try:
        switch = ctypes.c_bool.in_dll(ctypes.CDLL(torch._C.__file__), "FLAGS_caffe2_report_cpu_memory_usage")
    except ValueError:  # a torch made with gflags, which name it otherwise: at times a tensor counts for too long
        switch = ctypes.c_bool()
    before, switch.value = switch.value, True
    try:
        yield
    finally:
        switch.value = before


def relative(mine: list[float], plain: list[float]) -> Estimate:
    ratios = [a / b for a, b in zip(mine, plain, strict=True)]
    return Estimate(value=statistics.median(ratios), low=min(ratios), high=max(ratios))


def device() -> str:
    found = accelerator.devices()
    return found[0].name if found else stage_process.processor()


if __name__ == "__main__":
    stage_process.run(main)
