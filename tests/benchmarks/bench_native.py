"""Training steps and predictions by the compiled library against PyTorch: time, and the share of the rate of products.

"plain" is the same equations in the way of PyG and HydraGNN with AdamW of PyTorch; "PyTorch" is this project's own path under
DeepSpeed, as on a GPU; "native" the compiled library. A step is gradient, clipping and update.
"""

from __future__ import annotations

import itertools
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.contract.settings import OptimSettings
from gnnscale.contract.stage_spec import Runtime
from gnnscale.inference.native_potential import use_library
from gnnscale.models.compiled import compile_network
from gnnscale.models.potential import predict
from gnnscale.models.recording import Op, Program, read_code
from gnnscale.native.library import instruction_set
from gnnscale.train import process_group
from gnnscale.train.deepspeed_engine import DeepSpeedEngine
from gnnscale.train.engine import Engine
from gnnscale.train.native_engine import NativeEngine
from gnnscale.train.schedule import group_parameters
from tests.benchmarks.bench_step import CUTOFF, gemm_rate, liquid, plain, potential
from tests.benchmarks.measure import Table, in_turn
from tests.support.structures import Sample, make_batch

WIDTHS = (16, 32, 64, 96, 128, 256)
KINDS = list(itertools.product(("deferred", "edge"), ("direct", "gradient")))
MESSAGES = Op.MESSAGES, Op.EDGE_MESSAGES, Op.MOMENT_MESSAGES
ARRAYS = {Op.MESSAGES: 3, Op.EDGE_MESSAGES: 3, Op.MOMENT_MESSAGES: 4, Op.CONTRACTION: 3}  # of each block
STEPS_IN_A_TURN = 5
OPTIM = OptimSettings(learning_rate=1e-6)  # so small that all candidates keep their weights
CRYSTAL_CELLS, CRYSTAL_SIDE = 10, 3.61  # of copper: 4,000 atoms


def small_boxes(boxes: int = 16, seed: int = 0) -> tuple[AtomGraphs, Properties]:
    """Make a batch as of the default study: 16 structures with 14 atoms and about 22 neighbours, and labels."""
    rng = np.random.default_rng(seed)
    sites = np.stack(np.meshgrid(range(2), range(2), range(4)), axis=-1).reshape(-1, 3)[:14]
    spacing = 2.65  # Angstrom
    cell, periodic = np.diag([2, 2, 4]) * spacing, np.ones(3, bool)
    places = [(sites + rng.uniform(-0.17, 0.17, (14, 3))) * spacing for _ in range(boxes)]
    samples = [Sample(rng.choice([1, 6, 8, 29], 14), x, cell, periodic) for x in places]
    graphs = make_batch(samples, CUTOFF, torch.float32)
    torch.manual_seed(0)
    stress = torch.full((boxes, 3, 3), torch.nan)
    return graphs, Properties(torch.randn(boxes, dtype=torch.float64), torch.randn(14 * boxes, 3), stress)


def repeat(step: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(STEPS_IN_A_TURN):
            step()

    return run


def step_of_engine(engine: Engine, batch: tuple[AtomGraphs, Properties]) -> Callable[[], None]:
    counts, number = np.array([len(batch[1].energy), batch[1].forces.numel(), 0]), itertools.count(1)

    def step() -> None:
        engine.learn([lambda: batch], counts)
        engine.step(OPTIM.learning_rate, next(number))

    return repeat(step)


def step_of_plain(config: EGNNConfig, batch: tuple[AtomGraphs, Properties]) -> Callable[[], None]:
    model, (graphs, labels) = plain(config), batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=OPTIM.learning_rate, fused=True)

    def step() -> None:
        out = model(graphs)
        loss = (out.energy - labels.energy).abs().mean() + (out.forces - labels.forces).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip)
        optimizer.step()

    return repeat(step)


def measure_roof() -> tuple[float, float]:
    """Return what one core can do: GFLOP/s of multiply-adds in registers, GB/s from its second cache."""
    source = Path(__file__).with_name("roof.cpp")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "roof"
        subprocess.run(["g++", "-O3", "-march=native", "-mprefer-vector-width=512", "-o", program, source], check=True)
        rate, bandwidth = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    return float(rate), float(bandwidth)


def bytes_moved(program: Program, atoms: int, edges: int) -> float:
    """Return the bytes that the blocks of a step read and write, if each array that a pass needs is moved once.

    A block with i numbers in and o numbers out moves i + o for its value and 2 i + o for the reverse of that; gradient
    forces add 2 i + o for slopes and 2 i + o for tangents, and the reverse needs another i + o. A message also reads its
    geometry and Q_j on every edge in each pass.
    """
    variables, blocks = read_code(program.code)
    passes, radial, numbers = 4 if program.gradient else 2, int(program.code[7]), 0.0
    for op, operands in blocks:
        known = [variables[k] for k in operands[: ARRAYS.get(op, 2)] if k >= 0]
        arrays = sum(v.components * v.columns for v in known) * atoms
        numbers += arrays * (8 if program.gradient else 2.5)
        if op in MESSAGES:
            scales = sum(v.components for v in known[1:])
            numbers += edges * (radial + scales + known[1].columns) * passes
    return 4 * numbers


def steps(form: str, forces: str, width: int, rate: float) -> list[dict]:
    batch, config = small_boxes(), EGNNConfig(form=form, forces=forces, width=width)
    models = [potential(config) for _ in range(2)]
    groups = [group_parameters(model, width, OPTIM) for model in models]
    compiled = compile_network(models[1], torch.float32)
    assert not isinstance(compiled, str), compiled
    runs = {
        "plain": step_of_plain(config, batch),
        "PyTorch": step_of_engine(DeepSpeedEngine(models[0], groups[0], OPTIM, Runtime()), batch),
        "native": step_of_engine(NativeEngine(models[1], groups[1], OPTIM, compiled), batch),
    }
    atoms, edges = len(batch[0].numbers), len(batch[0].receivers)
    timings = in_turn(runs, rounds=7)
    ours = timings["PyTorch"].seconds.median
    return [
        {"what": f"step, {form}, {forces} forces", "width": width, "atoms": atoms, "edges": edges, "way": name}
        | {"ms": seconds.median / STEPS_IN_A_TURN * 1e3, "PyTorch/this": ours / seconds.median}
        | {"GFLOP/s": config.flops(atoms, edges) * STEPS_IN_A_TURN / seconds.median / 1e9}
        | {"of GEMM rate": config.flops(atoms, edges) * STEPS_IN_A_TURN / seconds.median / rate}
        | {"FLOP/byte": config.flops(atoms, edges) / bytes_moved(compiled.program, atoms, edges)}
        for name, (seconds, _) in timings.items()
    ]


def copper() -> AtomGraphs:
    """Make a crystal of 4,000 atoms with 42 neighbours, displaced."""
    rng = np.random.default_rng(0)
    corners = np.stack(np.meshgrid(*[range(CRYSTAL_CELLS)] * 3), axis=-1).reshape(-1, 1, 3)
    face_centred = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    x = (corners + face_centred).reshape(-1, 3) * CRYSTAL_SIDE + rng.normal(0, 0.1, (4 * CRYSTAL_CELLS**3, 3))
    cell = np.eye(3) * CRYSTAL_CELLS * CRYSTAL_SIDE
    return make_batch([Sample(np.full(len(x), 29), x, cell, np.ones(3, bool))], CUTOFF, torch.float32)


def predictions(form: str, forces: str, graphs: AtomGraphs, rate: float) -> list[dict]:
    config = EGNNConfig(form=form, forces=forces, width=64)
    model = potential(config).requires_grad_(False)
    chunked = potential(config, 4096).requires_grad_(False)
    native, _ = use_library(model)

    def run(predictor) -> Callable[[], object]:
        def once() -> object:
            with torch.no_grad():
                return predict(predictor, graphs)

        return once

    timings = in_turn({"PyTorch": run(model), "PyTorch, in chunks": run(chunked), "native": run(native)})
    atoms, edges = len(graphs.numbers), len(graphs.receivers)
    best = min(timing.seconds.median for name, timing in timings.items() if name != "native")
    return [
        {"what": f"prediction, {form}, {forces} forces", "width": 64, "atoms": atoms, "edges": edges, "way": name}
        | {
            "ms": seconds.median * 1e3,
            "PyTorch/this": best / seconds.median,
            "1000 atoms/s": atoms / seconds.median / 1e3,
        }
        for name, (seconds, _) in timings.items()
    ]


def main() -> Table:
    process_group.join_ranks(1)
    process_group.start_deepspeed()
    torch.set_num_threads(1)
    rate = gemm_rate(half=False)
    rows = [row for form, forces in KINDS for width in WIDTHS for row in steps(form, forces, width, rate)]
    for graphs in (copper(), liquid(1)):
        rows += [row for form, forces in KINDS for row in predictions(form, forces, graphs, rate)]
    peak, bandwidth = measure_roof()
    rows.append({"what": "one core", "way": "at most", "GFLOP/s": peak, "GB/s": bandwidth})
    return Table(f"depth 3, one thread, {instruction_set()}; PyTorch's products reach {rate / 1e9:.0f} GFLOP/s", rows)
