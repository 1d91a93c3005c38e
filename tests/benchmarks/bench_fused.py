"""One training step on a GPU with messages as Triton kernels, against the same in eager PyTorch; nothing without a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from statistics import median

import torch

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models import edges
from gnnscale.models.kernels import messages
from tests.benchmarks.bench_step import HALF, liquid, plain, potential
from tests.benchmarks.measure import Table

CASES = [("deferred", 64, 256), ("deferred", 256, 256), ("edge", 256, 256), ("edge", 1024, 64)]  # boxes of 62 atoms
CHUNK = 2**24  # numbers of a chunk: 32 MB in bfloat16, which the L2 cache of an H200 holds


@contextmanager
def eager():
    """Run without kernels."""
    kept = messages.can_fuse
    messages.can_fuse = edges.can_fuse = lambda x: False
    try:
        yield
    finally:
        messages.can_fuse = edges.can_fuse = kept


def step(model: torch.nn.Module, graphs: AtomGraphs, half: bool, kernels: bool) -> Callable[[], None]:
    def both_ways() -> None:
        with torch.autocast("cuda", HALF, enabled=half):
            out = model(graphs)
            loss = out.energy.float().sub(0.1).abs().mean() + out.forces.float().sub(0.1).abs().mean()
        loss.backward()

    def run() -> None:
        if kernels:
            both_ways()
        else:
            with eager():
                both_ways()
        torch.cuda.synchronize()

    return run


def case(form: str, width: int, boxes: int, half: bool, rounds: int = 5) -> list[dict]:
    graphs, config = AtomGraphs(*(x.cuda() for x in liquid(boxes))), EGNNConfig(width=width, form=form)
    size = CHUNK // width
    runs = {
        "plain": step(plain(config).cuda(), graphs, half, kernels=False),
        "split": step(potential(config).cuda(), graphs, half, kernels=False),
        "chunked": step(potential(config, size).cuda(), graphs, half, kernels=False),
        "kernels": step(potential(config, size).cuda(), graphs, half, kernels=True),
    }
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    memory = {}
    for way, run in runs.items():
        run()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        memory[way] = torch.cuda.max_memory_allocated() - before
    for _ in range(rounds):
        for way, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[way].append(time.perf_counter() - start)
    flops = config.flops(len(graphs.numbers), len(graphs.receivers))
    return [
        {"form": form, "width": width, "edges": len(graphs.receivers), "precision": "bf16" if half else "fp32"}
        | {"way": way, "ms": median(times) * 1e3, "low": min(times) * 1e3, "high": max(times) * 1e3}
        | {"time/plain": median([t / b for t, b in zip(times, seconds["plain"], strict=True)])}
        | {"MB": memory[way] / 1e6, "memory/plain": memory[way] / memory["plain"]}
        | {"TFLOP/s": flops / median(times) / 1e12}
        for way, times in seconds.items()
    ]


def main() -> Table:
    if not torch.cuda.is_available():
        return Table("no GPU here, so nothing to measure", [])
    rows = [row for form, width, boxes in CASES for half in (False, True) for row in case(form, width, boxes, half)]
    return Table(f"depth 3, direct forces, {torch.cuda.get_device_name()}", rows)
