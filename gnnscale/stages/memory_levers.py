"""The stage `memory_levers`: what each lever for memory saves and costs, on one network and one batch of a study's data.

python -m gnnscale.stages.memory_levers DIRECTORY, alone or through srun or mpiexec. Leaves levers.json.

The same processes take the step in all ways by turns, so that all times are of the same nodes in the same minutes. Memory
is that of all tensors from the first weight to the end of a second step, when all moments exist. It counts neither the
interpreter nor what an earlier way left in the process.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.contract import errors, stage_run
from gnnscale.contract.results import LeverComparison, MeasuredStep
from gnnscale.contract.scaling_results import Estimate
from gnnscale.contract.settings import LeverSettings, OptimSettings
from gnnscale.contract.stage_spec import Runtime
from gnnscale.data.loading import batch_plan
from gnnscale.data.loading.corpus import Corpus, load_corpus, make_batch_of_share
from gnnscale.job import stage_process
from gnnscale.machine import accelerator
from gnnscale.models.registry import build
from gnnscale.train import process_group
from gnnscale.train.deepspeed_engine import DeepSpeedEngine
from gnnscale.train.loss import compute_loss
from gnnscale.train.normalisation import pool_normalisation
from gnnscale.train.schedule import group_parameters

TURNS = 3
LEARNING_RATE = 1e-4  # small, so that the second loss shows the first gradient and does not diverge


class Way(NamedTuple):
    """One way to take a training step."""

    name: str
    runtime: Runtime
    precision: Literal["fp32", "bf16"] = "fp32"


class Task(NamedTuple):
    """The batch that all ways take, as one rank sees it."""

    settings: LeverSettings
    corpus: Corpus
    graphs: AtomGraphs
    labels: Properties
    counts: np.ndarray  # (3,) labels of the whole batch


class Step:
    """A network under DeepSpeed that takes its step in one way."""

    def __init__(self, task: Task, way: Way):
        torch.manual_seed(0)
        self.task, corpus = task, task.corpus
        self.optim = OptimSettings(precision=way.precision)
        model = build(
            task.settings.model, len(corpus.names), corpus.edges / max(1, corpus.atoms), way.runtime.edge_chunk
        )
        model.set_normalisation(*pool_normalisation(corpus.cards, task.settings.model.forces))
        groups = group_parameters(model, task.settings.model.rate_width, self.optim)
        self.engine, self.number = DeepSpeedEngine(model, groups, self.optim, way.runtime), 0

    def __call__(self) -> float:
        """Take a step, and return the loss over the whole batch before it."""
        task, self.number = self.task, self.number + 1
        sums = self.engine.learn([lambda: (task.graphs, task.labels)], task.counts)
        whole = process_group.reduce_sum(sums).cpu().numpy()
        self.engine.step(LEARNING_RATE, self.number)
        return compute_loss(whole, task.counts, self.optim)[0]


def main(run: stage_run.Run) -> stage_run.Outputs:
    ranks = process_group.join_ranks(run.spec.runtime.threads)
    process_group.start_deepspeed()  # before memory is measured
    task, chosen = prepare_task(run, ranks.size, ranks.rank)
    ways = list_ways(run.spec.runtime, task.settings, int(task.graphs.senders.numel()))
    print(f"{run.spec.id}: {len(ways)} ways to take one step; {ranks.size} rank(s)", flush=True)
    comparison = LeverComparison(
        model=task.settings.model,
        parameters=task.settings.model.parameters(len(task.corpus.names)),
        ranks=ranks.size,
        device=device_name(),
        structures=len(chosen),
        atoms=int(task.corpus.natoms[chosen].sum()),
        edges=int(task.corpus.nedges[chosen].sum(dtype=np.int64)),
        ways=measure_ways(run, task, ways, ranks.rank),
    )
    if ranks.rank == 0:
        run.write("levers.json", comparison.model_dump_json(indent=1) + "\n")
    return stage_run.Outputs(files=["levers.json"], values={"ways": len(ways), "ranks": ranks.size})


def measure_ways(run: stage_run.Run, task: Task, ways: list[Way], rank: int) -> tuple[MeasuredStep, ...]:
    """Measure the memory of every way, then the time of all ways by turns."""
    total, done = (1 + TURNS) * len(ways), 0

    def report_way(way: Way) -> None:
        nonlocal done
        done += 1
        if rank == 0:
            run.report_progress(done, total)
            print(f"{done} of {total}: {way.name}", flush=True)

    peaks, losses = [], []
    for way in ways:
        peak, loss = measure_peak(task, way)
        peaks.append(max(process_group.gather(peak)))
        losses.append(loss)
        report_way(way)
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(TURNS):
        for way, turns in zip(ways, seconds, strict=True):
            turns.append(max(process_group.gather(time_step(task, way))))
            report_way(way)
    return tuple(
        MeasuredStep(
            name=way.name,
            runtime=way.runtime,
            precision=way.precision,
            peak_bytes=peak,
            loss=loss,
            seconds=statistics.median(turns),
            relative=compare_seconds(turns, seconds[0]),
        )
        for way, peak, loss, turns in zip(ways, peaks, losses, seconds, strict=True)
    )


def prepare_task(run: stage_run.Run, size: int, rank: int) -> tuple[Task, np.ndarray]:
    """Return this rank's share of the first batch that a training would take, and the whole batch."""
    settings = run.require_settings(LeverSettings)
    sources = {need.removeprefix("convert/"): path for need, path in run.needs.items() if need.startswith("convert/")}
    corpus = load_corpus(sources, "train", settings.model.cutoff, threads=run.spec.runtime.threads)
    if len(corpus) < settings.batch:
        raise errors.UserError(
            f"a batch of {settings.batch} structures asked for, the shards hold {len(corpus)}",
            "ask for a smaller batch, or convert more",
            kind="data",
        )
    chosen = batch_plan.global_batch(0, len(corpus), settings.batch, 0)
    own_part = batch_plan.divide_batch(corpus.costs(chosen), size)[rank]
    graphs, labels = make_batch_of_share(corpus, chosen[own_part])
    counts = corpus.labels[chosen].sum(0, dtype=np.int64)
    return Task(settings, corpus, graphs, labels, counts), chosen


def list_ways(runtime: Runtime, settings: LeverSettings, edges: int) -> list[Way]:
    """Return the ways in the order of arXiv 2504.08112 (checkpointing, then ZeRO), also with edges in chunks instead."""
    plain = runtime.model_copy(update={"edge_chunk": None})
    chunk = min(runtime.edge_chunk or edges, max(1, edges // 8))  # in a small batch too there are several
    chunked = plain.model_copy(update={"edge_chunk": chunk})
    layers = plain.model_copy(update={"activation_checkpointing": True})
    ways = [Way("plain", plain)]
    for name, base in (("each layer checkpointed", layers), (f"edges in chunks of {chunk:,}", chunked)):
        if base is layers and not settings.model.can_checkpoint_layers:
            continue
        if base is chunked and not settings.model.can_chunk_edges:
            continue
        ways.append(Way(name, base))
        for zero in (1, 2) if runtime.ranks > 1 else ():
            ways.append(Way(f"{name}, ZeRO {zero}", base.model_copy(update={"zero_stage": zero})))
    last = ways[-1]
    return [*ways, Way(f"{last.name}, bf16", last.runtime, "bf16")]


# ---------------------------------------------------------------------------------------------------------- one way
def measure_peak(task: Task, way: Way) -> tuple[int, float]:
    """Return the peak bytes of tensors from nothing to the end of a second step, and the loss before that step."""
    losses: list[float] = []

    def two_steps() -> None:
        step = Step(task, way)
        losses.extend((step(), step()))

    return measure_peak_bytes(two_steps), losses[-1]


def time_step(task: Task, way: Way) -> float:
    """Return the median seconds of a step, after one that is not counted."""
    step, seconds = Step(task, way), []
    step()
    for _ in range(task.settings.steps):
        accelerator.synchronize()
        began = time.perf_counter()
        step()
        accelerator.synchronize()
        seconds.append(time.perf_counter() - began)
    del step
    gc.collect()
    return statistics.median(seconds)


def measure_peak_bytes(run: Callable[[], object]) -> int:
    """Return the peak bytes of tensors while `run` runs, above those that existed before."""
    return measure_tensor_bytes(run).peak


class TensorBytes(NamedTuple):
    """Bytes of tensors that a function leaves and at their peak while it runs, above those that existed before."""

    kept: int
    peak: int


def measure_tensor_bytes(run: Callable[[], object]) -> TensorBytes:
    """Count the tensors that live: no pages of libraries, and nothing that an allocator holds back."""
    with count_every_thread():
        gc.collect()  # so that `run` frees nothing that was garbage before
        return (_measure_on_host if accelerator.detect_kind() == "cpu" else _measure_on_device)(run)


def _measure_on_device(run: Callable[[], object]) -> TensorBytes:
    memory = accelerator.torch_module(accelerator.detect_kind())
    memory.empty_cache()
    memory.reset_peak_memory_stats()
    before = int(memory.memory_allocated())
    run()
    gc.collect()
    accelerator.synchronize()
    return TensorBytes(int(memory.memory_allocated()) - before, int(memory.max_memory_allocated()) - before)


def _measure_on_host(run: Callable[[], object]) -> TensorBytes:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
        gc.collect()
    tree = profiler.profiler.kineto_results.experimental_event_tree()
    allocations = sorted(find_allocations(tree), key=lambda allocation: allocation.time)
    if not allocations:
        return TensorBytes(0, 0)
    before, levels = allocations[0].level - allocations[0].change, [allocation.level for allocation in allocations]
    return TensorBytes(levels[-1] - before, max(0, max(levels) - before))


class Allocation(NamedTuple):
    """Memory of a tensor taken or given back: when, the bytes of all tensors from then on, and their change."""

    time: int
    level: int
    change: int


def find_allocations(events: list[Any]) -> Iterator[Allocation]:
    """Yield the allocations in the profiler's tree of events."""
    for event in events:
        if event.typed[0].name == "Allocation":
            yield Allocation(event.start_time_ns, event.extra_fields.total_allocated, event.extra_fields.alloc_size)
        yield from find_allocations(event.children)


@contextmanager
def count_every_thread() -> Iterator[None]:
    """Have PyTorch count what other threads free too, as those of gloo sometimes do with what was reduced.

    The profiler sees its own thread alone, and would take such a tensor for one that lives on.
    """
    try:
        flag = ctypes.c_bool.in_dll(ctypes.CDLL(torch._C.__file__), "FLAGS_caffe2_report_cpu_memory_usage")
    except ValueError:  # a PyTorch built with gflags, which name it otherwise: then a tensor may count for too long
        flag = ctypes.c_bool()
    before, flag.value = flag.value, True
    try:
        yield
    finally:
        flag.value = before


def compare_seconds(turns: list[float], plain: list[float]) -> Estimate:
    ratios = [a / b for a, b in zip(turns, plain, strict=True)]
    return Estimate(value=statistics.median(ratios), low=min(ratios), high=max(ratios))


def device_name() -> str:
    devices = accelerator.list_devices()
    return devices[0].name if devices else stage_process.read_processor_name()


if __name__ == "__main__":
    stage_process.run(main)
