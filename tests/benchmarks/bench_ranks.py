"""ZeRO 0 to 3 on two gloo ranks of this machine: memory of a rank against the plan, and the time of a step."""

from __future__ import annotations

import json

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.architectures.memory import peak_bytes
from gnnscale.contract.stage_spec import Runtime
from tests.benchmarks.measure import Table
from tests.support.training import run_on_ranks

CONFIG, ATOMS, DEGREE, RANKS, STEPS = EGNNConfig(form="edge", width=768, depth=3), 100, 30, 2, 3
RUNTIMES = [
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"zero_stage": 2},
    {"zero_stage": 3},
    {"zero_stage": 1, "edge_chunk": 512},
    {"zero_stage": 1, "activation_checkpointing": True},
]


def main() -> Table:
    rows = [row(runtime) for runtime in RUNTIMES]
    for each in rows:
        each["time / ZeRO 0"] = each["seconds"] / rows[0]["seconds"]
    million = CONFIG.parameters(1) / 1e6
    return Table(f"{million:.1f} M parameters, {ATOMS} atoms and {ATOMS * DEGREE} edges on each of {RANKS} ranks", rows)


def row(runtime: dict) -> dict:
    asked = {"config": CONFIG.model_dump(), "atoms": ATOMS, "degree": DEGREE, "optim": {}, "runtime": runtime}
    ended = run_on_ranks(RANKS, "-m", "tests.support.synthetic", json.dumps(asked | {"steps": STEPS}))
    assert all(code == 0 for code, _ in ended), ended
    found = [json.loads(said.splitlines()[-1]) for _, said in ended]
    peak = max(each["peak"] for each in found)
    plan = peak_bytes(CONFIG, ATOMS, ATOMS * DEGREE, Runtime(**runtime).memory_levers, ranks=RANKS)
    return {
        "ZeRO": runtime["zero_stage"],
        "saving": " ".join(f"{key}={value}" for key, value in runtime.items() if key != "zero_stage") or "none",
        "kept MB": max(each["kept"] for each in found) / 1e6,
        "planned kept": (plan.parameters + plan.optimiser) / 1e6,
        "peak MB": peak / 1e6,
        "planned peak": plan.peak / 1e6,
        "seconds": max(each["seconds"] for each in found),
    }
