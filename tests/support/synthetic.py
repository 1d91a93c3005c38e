"""A training step on a graph of any size, with its memory and time, for tests and benchmarks."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.contract.settings import OptimSettings
from gnnscale.contract.stage_spec import Runtime
from gnnscale.models.registry import build
from gnnscale.train import deepspeed_engine, process_group
from gnnscale.train.loss import sum_penalties
from gnnscale.train.normalisation import Normalisation
from gnnscale.train.schedule import parameter_groups
from tests.benchmarks.plain import HydraLayer

EVERY_TENSOR_MAPPED = {  # every tensor is a mapping of its own, so that freed memory leaves the process
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}


def random_graph(atoms: int, degree: int) -> tuple[AtomGraphs, Properties]:
    generator = torch.Generator().manual_seed(0)
    receivers = torch.arange(atoms).repeat_interleave(degree)
    graphs = AtomGraphs(
        numbers=torch.randint(1, 30, (atoms,), generator=generator),
        positions=2 * torch.randn(atoms, 3, generator=generator),
        structure=torch.zeros(atoms, dtype=torch.int64),
        cell=20 * torch.eye(3)[None],
        source=torch.zeros(1, dtype=torch.int64),
        receivers=receivers,
        senders=torch.randint(0, atoms, (atoms * degree,), generator=generator),
        shifts=torch.full((atoms * degree, 3), 0.05),  # no two atoms are at one place
    )
    forces = torch.randn(atoms, 3, generator=generator)
    return graphs, Properties(torch.zeros(1, dtype=torch.float64), forces, torch.full((1, 3, 3), torch.nan))


def make_step(
    config: EGNNConfig, atoms: int, degree: int, optim: OptimSettings, runtime: Runtime, plain: bool = False
) -> Callable[[], None]:
    """Return a function that takes a step; `plain` writes all layers but the small first one as HydraGNN does."""
    torch.manual_seed(0)
    model = build(config, 1, degree, runtime.edge_chunk)
    if plain:
        layers = model.backbone.layers
        for k in range(1, len(layers)):
            layers[k] = HydraLayer(layers[k])
    under = deepspeed_engine.Engine(model, parameter_groups(model, config.width, optim), optim, runtime)
    graphs, labels = random_graph(atoms, degree)
    normalisation = Normalisation(torch.zeros(1, 119, dtype=torch.float64), 1.0, 1.0)

    def step() -> None:
        sums = sum_penalties(under, normalisation, graphs, labels, optim)
        under.backward(sums.sum() / atoms, last=True)
        under.step(1e-3, 1)

    return step


def read_status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field + ":")).split()[1])


def measure_step(
    config: EGNNConfig,
    atoms: int,
    degree: int,
    optim: OptimSettings,
    runtime: Runtime,
    steps: int = 1,
    plain: bool = False,
) -> dict[str, float]:
    """Return resident bytes between steps and at their peak, above those of a tiny training, and seconds of a step."""
    process_group.join_ranks(runtime.threads)
    tiny = make_step(config.model_copy(update={"width": 8}), 16, degree, optim, runtime)
    tiny(), tiny()
    del tiny
    gc.collect()
    before = read_status("VmRSS")
    step = make_step(config, atoms, degree, optim, runtime, plain)
    step()
    kept = read_status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    for _ in range(steps):
        step()
    seconds = (time.perf_counter() - began) / steps
    return {"kept": kept - before, "peak": read_status("VmHWM") - before, "seconds": seconds}


def count_tensor_bytes(run: Callable[[], None]) -> tuple[int, int]:
    """Return the bytes of tensors that `run` leaves and their peak while it runs, above those that existed before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    level = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return level, peak


def measure_tensors(
    config: EGNNConfig, atoms: int, degree: int, optim: OptimSettings, runtime: Runtime
) -> dict[str, float]:
    """Return bytes of tensors between steps and at their peak: the same with every allocator and every library."""
    process_group.join_ranks(runtime.threads)
    steps: list[Callable[[], None]] = []

    def first_step() -> None:
        steps.append(make_step(config, atoms, degree, optim, runtime))
        steps[0]()

    kept, _ = count_tensor_bytes(first_step)
    _, peak = count_tensor_bytes(steps[0])
    return {"kept": kept, "peak": kept + peak}


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    options = OptimSettings(**request["optim"]), Runtime(**request["runtime"])
    case = EGNNConfig(**request["config"]), request["atoms"], request["degree"], *options
    if request.get("tensors"):
        found = measure_tensors(*case)
    else:
        found = measure_step(*case, request.get("steps", 1), request.get("plain", False))
    print(json.dumps(found | {"rank": int(os.environ["RANK"])}), flush=True)
    os._exit(0)  # as gnnscale/job/stage_process.py does, and for its reason
