"""Table II of arXiv 2504.08112 with its own network on two gloo ranks, and ours of equal size next to it.

All tensors count: weights, gradients, moments, activations and buffers of a rank at its fullest, but not its graph.
"""

from __future__ import annotations

import json
import statistics

from gnnscale.architectures.egnn import EGNNConfig
from tests.benchmarks.measure import Table
from tests.support.training import run_on_ranks

RANKS, ATOMS, DEGREE, STEPS, ROUNDS = 2, 496, 29, 2, 3
PAPER = EGNNConfig(form="paper", width=512, depth=3)
N = PAPER.body_parameters()
EDGE, DEFERRED = (EGNNConfig(depth=3, form=form).for_parameters(N) for form in ("edge", "deferred"))
CHUNKED = {"edge_chunk": 512}
WAYS = [  # name, network, in the way of HydraGNN, runtime, precision
    ("the paper's, as it was", PAPER, True, {}, "fp32"),
    ("+ activation checkpointing", PAPER, True, {"activation_checkpointing": True}, "fp32"),
    ("+ ZeRO 1", PAPER, True, {"activation_checkpointing": True, "zero_stage": 1}, "fp32"),
    ("+ ZeRO 2", PAPER, True, {"activation_checkpointing": True, "zero_stage": 2}, "fp32"),
    ("edge, chunked", EDGE, False, CHUNKED, "fp32"),
    ("edge, chunked, ZeRO 1", EDGE, False, CHUNKED | {"zero_stage": 1}, "fp32"),
    ("edge, chunked, ZeRO 1, bf16", EDGE, False, CHUNKED | {"zero_stage": 1}, "bf16"),
    ("deferred, chunked", DEFERRED, False, CHUNKED, "fp32"),
    ("deferred, chunked, ZeRO 1", DEFERRED, False, CHUNKED | {"zero_stage": 1}, "fp32"),
]


def main() -> Table:
    found = [[measured(way) for way in WAYS] for _ in range(ROUNDS)]
    peaks = [max(each["peak"] for each in ranks) for ranks in found[0]]
    seconds = [[max(each["seconds"] for each in ranks) for ranks in ways] for ways in zip(*found, strict=True)]
    rows = [
        {
            "what": name,
            "parameters": config.body_parameters(),
            "peak MB": peak / 1e6,
            "peak / the paper's": peak / peaks[0],
            "seconds": statistics.median(times),
            "time / the paper's": statistics.median(a / b for a, b in zip(times, seconds[0], strict=True)),
        }
        for (name, config, *_), peak, times in zip(WAYS, peaks, seconds, strict=True)
    ]
    return Table(f"{ATOMS} atoms and {ATOMS * DEGREE} edges on each of {RANKS} ranks, depth 3, Adam", rows)


def measured(way: tuple) -> list[dict]:
    _, config, plain, runtime, precision = way
    asked = {"config": config.model_dump(), "atoms": ATOMS, "degree": DEGREE, "steps": STEPS, "plain": plain}
    asked |= {"runtime": runtime, "optim": {"precision": precision}}
    ended = run_on_ranks(RANKS, "-m", "tests.support.synthetic", json.dumps(asked), timeout=300)
    assert all(code == 0 for code, _ in ended), ended
    return [json.loads(said.splitlines()[-1]) for _, said in ended]
