"""A training step on a graph of any size, with its memory and time, for tests and benchmarks."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

import torch

from gnnscale.architectures.base import Architecture
from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.contract.settings import OptimSettings
from gnnscale.contract.stage_spec import Runtime
from gnnscale.models.registry import build
from gnnscale.stages.memory_levers import measure_tensor_bytes
from gnnscale.train import process_group
from gnnscale.train.deepspeed_engine import DeepSpeedEngine
from gnnscale.train.loss import sum_penalties
from gnnscale.train.normalisation import Normalisation
from gnnscale.train.schedule import group_parameters
from tests.benchmarks.plain import HydraLayer
from tests.support.architectures import make_config

COUNTED_STEPS = 2, 8  # of one rank, and of several


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
    config: Architecture,
    graph: tuple[AtomGraphs, Properties],
    degree: int,
    optim: OptimSettings,
    runtime: Runtime,
    plain: bool = False,
) -> Callable[[], None]:
    """Return a function that takes a step; `plain` writes all layers but the small first one as HydraGNN does."""
    torch.manual_seed(0)
    model = build(config, 1, degree, runtime.edge_chunk)
    if plain:
        layers = model.backbone.layers
        for k in range(1, len(layers)):
            layers[k] = HydraLayer(layers[k])
    under = DeepSpeedEngine(model, group_parameters(model, config.width, optim), optim, runtime)
    graphs, labels = graph
    normalisation = Normalisation(torch.zeros(1, 119, dtype=torch.float64), 1.0, 1.0)

    def step() -> None:
        sums = sum_penalties(under, normalisation, graphs, labels, optim)
        under.backward(sums.sum() / len(graphs.numbers), last=True)
        under.step(1e-3, 1)

    return step


def measure_step(
    config: Architecture,
    atoms: int,
    degree: int,
    optim: OptimSettings,
    runtime: Runtime,
    steps: int = 1,
    plain: bool = False,
) -> dict[str, float]:
    """Return the bytes of tensors between steps and at their peak, without those of the graph, and seconds of a step.

    The peak is the least of several steps: on a busy machine the threads of gloo let go late of what they have reduced.
    """
    counted = COUNTED_STEPS[process_group.join_ranks(runtime.threads).size > 1]
    process_group.start_deepspeed()
    graph, made = random_graph(atoms, degree), []

    def take_first_step() -> None:
        made.append(make_step(config, graph, degree, optim, runtime, plain))
        made[0]()

    kept = measure_tensor_bytes(take_first_step).kept
    peak = kept + min(measure_tensor_bytes(made[0]).peak for _ in range(counted))
    began = time.perf_counter()
    for _ in range(steps):
        made[0]()
    seconds = (time.perf_counter() - began) / steps
    return {"kept": kept, "peak": peak, "seconds": seconds}


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    options = OptimSettings(**request["optim"]), Runtime(**request["runtime"])
    case = make_config(request["config"]), request["atoms"], request["degree"], *options
    found = measure_step(*case, request.get("steps", 1), request.get("plain", False))
    print(json.dumps(found | {"rank": int(os.environ["RANK"])}), flush=True)
    os._exit(0)  # as gnnscale/job/stage_process.py does, and for its reason
