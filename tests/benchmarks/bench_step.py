"""One training step against the same equations in the way of PyG and HydraGNN: time, memory, share of the GEMM rate."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.atoms.graph import AtomGraphs, edge_vectors
from gnnscale.contract.settings import OptimSettings, TrainSettings
from gnnscale.models.edges import build_patterns, embed_edges
from gnnscale.models.egnn import EGNNLayer
from gnnscale.models.egnn_paper import PaperLayer
from gnnscale.models.kernels.chunked import split_into_chunks
from gnnscale.models.potential import Potential
from gnnscale.models.registry import build
from gnnscale.stages.memory_levers import measure_peak_bytes
from tests.benchmarks.measure import Table, in_turn
from tests.benchmarks.plain import HydraLayer, PlainEGNN
from tests.support.structures import Sample, make_batch
from workflow.plan.memory_fit import edges_per_chunk

CUTOFF = 5.0  # Angstrom
DEGREE = 29.0
HALF = torch.bfloat16
STEPS = [("direct", 64, 16), ("direct", 256, 16), ("direct", 1024, 4), ("gradient", 64, 16), ("gradient", 256, 4)]
LAYERS = [(64, 16), (256, 16), (1024, 2)]  # width, boxes


def liquid(boxes: int, cutoff: float = CUTOFF, seed: int = 0) -> AtomGraphs:
    """Boxes of 62 atoms, displaced from a lattice, with about 29 neighbours within 5 Angstrom; 16 of them: 992 atoms."""
    rng = np.random.default_rng(seed)
    sites = np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3)[:62]
    side = 9.98  # Angstrom
    cell, periodic = np.eye(3) * side, np.ones(3, bool)
    places = [(sites + rng.uniform(-0.17, 0.17, (62, 3))) * side / 4 for _ in range(boxes)]
    return make_batch([Sample(rng.choice([1, 6, 8, 29], 62), x, cell, periodic) for x in places], cutoff, torch.float32)


def potential(config: EGNNConfig, edge_chunk: int | None = None) -> Potential:
    torch.manual_seed(0)
    made = build(config, 1, DEGREE, edge_chunk)
    if config.form != "paper":
        torch.nn.init.normal_(made.backbone.readout.weight)
    return made


def plain(config: EGNNConfig, checkpointed: bool = False) -> Potential:
    made = potential(config)
    made.backbone = PlainEGNN(made.backbone, checkpointed)
    return made


def step(model: Potential, graphs: AtomGraphs, half: bool = False) -> Callable[[], Tensor]:
    """Forward and backward; gradients exist, so that memory is that of activations and temporaries."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def run() -> Tensor:
        with torch.autocast("cpu", HALF, enabled=half):
            out = model(graphs)
            loss = out.energy.float().sub(0.1).abs().mean() + out.forces.float().sub(0.1).abs().mean()
        loss.backward()
        return loss

    return run


def gemm_rate(half: bool) -> float:
    """FLOP/s of (4096, 256) x (256, 256), the best of 20."""
    dtype = HALF if half else torch.float32
    a, b = torch.randn(4096, 256).to(dtype), torch.randn(256, 256).to(dtype)
    times = []
    for _ in range(20):
        start = time.process_time()
        a @ b
        times.append(time.process_time() - start)
    return 2 * 4096 * 256**2 / min(times)


def steps(forces: str, width: int, boxes: int, rates: dict[bool, float]) -> list[dict]:
    graphs, config = liquid(boxes), EGNNConfig(form="edge", width=width, forces=forces)
    deferred = config.model_copy(update={"form": "deferred"})
    size, size_half = (
        edges_per_chunk(TrainSettings(model=config, optim=OptimSettings(precision=p)), False) for p in ("fp32", "bf16")
    )
    models = {
        "plain": plain(config),
        "plain, checkpointed layers": plain(config, checkpointed=True),
        "split": potential(config),
        "chunked": potential(config, size),
        "chunked, bf16": potential(config, size_half),
        "deferred": potential(deferred),
        "deferred, chunked": potential(deferred, size),
    }
    one, two = models["plain"](graphs), models["chunked"](graphs)
    assert (one.forces - two.forces).norm() < 1e-5 * one.forces.norm() and torch.allclose(one.energy, two.energy, 1e-4)
    runs = {(name, False): step(model, graphs) for name, model in models.items() if name != "chunked, bf16"}
    half = {"plain": "plain", "split": "split", "chunked": "chunked, bf16"}
    runs |= {(name, True): step(models[of], graphs, True) for name, of in half.items()}
    timings, rows = in_turn(runs), []
    atoms, edges = len(graphs.numbers), len(graphs.receivers)
    base = 0
    for (name, half), run in runs.items():
        memory = measure_peak_bytes(run)
        base = base or memory
        counted = deferred if name.startswith("deferred") else config
        flops = counted.flops(atoms, edges)
        seconds, ratio = timings[name, half]
        again = extra_flops(counted, edges) if "chunked" in name else 0
        rows.append(
            {"what": f"step, {forces} forces", "width": width, "atoms": atoms, "edges": edges, "way": name}
            | {"precision": "bf16" if half else "fp32", "ms": seconds.median * 1e3, "time/plain": ratio.median}
            | {"low": ratio.low, "high": ratio.high, "MB": memory / 1e6, "memory/plain": memory / base}
            | {"of GEMM rate": flops / seconds.median / rates[half]}
            | {"with recompute": (flops + again) / seconds.median / rates[half]}
        )
    return rows


def extra_flops(config: EGNNConfig, edges: int) -> float:
    """Return the FLOPs that chunks repeat: each edge's forward pass once, or five times its matrix for gradient forces."""
    second = config.width**2 if config.form == "edge" else 0
    times = 1 if config.forces == "direct" else 5
    return 2 * config.depth * edges * times * (second + config.radial * config.width)


def layers(width: int, boxes: int) -> list[dict]:
    """Measure one layer between others: HydraGNN's, the same function with its first matrix split, and ours."""
    graphs, config = liquid(boxes), EGNNConfig(form="edge", width=width)
    torch.manual_seed(0)
    ours, theirs = EGNNLayer(config), PaperLayer(width, width, moves=True)
    h, vectors = torch.randn(len(graphs.numbers), width, requires_grad=True), edge_vectors(graphs)
    moved = vectors.clone().requires_grad_()
    geometry = (moved, vectors.norm(dim=1, keepdim=True), graphs.receivers, graphs.senders)
    parts = (build_patterns(graphs), split_into_chunks(graphs, max(256, 2**18 // width)))
    whole, cut = (embed_edges(vectors, CUTOFF, config.radial, torch.tensor(0.2), graph) for graph in parts)
    forward = {
        "HydraGNN's layer": lambda: HydraLayer.forward(hydra, h, *geometry),
        "the paper's, split": lambda: theirs(h, *geometry),
        "ours": lambda: ours(h, None, whole),
        "ours, chunked": lambda: ours(h, None, cut),
    }
    hydra = HydraLayer(theirs)

    def both_ways(run: Callable, half: bool) -> Callable[[], None]:
        def timed() -> None:
            with torch.autocast("cpu", HALF, enabled=half):
                x, v = run()
            (x.float().sum() + v.float().sum()).backward()

        return timed

    runs = {(name, half): both_ways(run, half) for half in (False, True) for name, run in forward.items()}
    edges = len(graphs.receivers)
    return [
        {"what": "one layer", "width": width, "atoms": len(h), "edges": edges, "way": name}
        | {"precision": "bf16" if half else "fp32", "ms": seconds.median * 1e3, "time/plain": ratio.median}
        | {"low": ratio.low, "high": ratio.high, "us/edge": seconds.median / edges * 1e6}
        for (name, half), (seconds, ratio) in in_turn(runs).items()
    ]


def main() -> Table:
    torch.set_num_threads(1)
    rates = {half: gemm_rate(half) for half in (False, True)}
    rows = [row for forces, width, boxes in STEPS for row in steps(forces, width, boxes, rates)]
    rows += [row for width, boxes in LAYERS for row in layers(width, boxes)]
    title = f"depth 3, one thread, GEMM {rates[False] / 1e9:.0f} (fp32) and {rates[True] / 1e9:.0f} (bf16) GFLOP/s"
    return Table(title, rows)
