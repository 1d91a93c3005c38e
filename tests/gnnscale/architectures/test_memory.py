"""The planner's arithmetic against the resident memory of real training steps."""

import json
import os

import pytest

from gnnscale.architectures import memory
from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.architectures.memory import BUCKET_NUMBERS, Memory, MemoryLevers, peak_bytes
from gnnscale.contract.stage_spec import Runtime
from tests.support.synthetic import MAPPED
from tests.support.training import on_ranks

DEGREE = 30
LARGE, WIDE = {"width": 256, "depth": 3}, {"width": 1024, "depth": 3}


def step(monkeypatch, config, atoms, ranks=1, precision="fp32", **runtime):
    """(what is planned, what is kept between steps, the peak), of a real step in a process of its own."""
    for key, value in MAPPED.items():
        monkeypatch.setenv(key, value)
    asked = {"config": config, "atoms": atoms, "degree": DEGREE, "optim": {"precision": precision}, "runtime": runtime}
    found = []
    for code, said in on_ranks(ranks, "-m", "tests.support.synthetic", json.dumps(asked)):
        assert code == 0, said
        found.append(json.loads(said.splitlines()[-1]))
    planned = peak_bytes(
        EGNNConfig(**config), atoms, atoms * DEGREE, Runtime(**runtime).memory_levers, precision, ranks
    )
    return planned, max(each["kept"] for each in found), max(each["peak"] for each in found)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux to reset the peak")
@pytest.mark.parametrize(
    ("config", "atoms", "runtime"),
    [
        (LARGE, 600, {}),
        (LARGE | {"forces": "gradient", "width": 128}, 300, {}),
        (WIDE, 20, {"zero_stage": 2}),
        (LARGE | {"depth": 6}, 300, {"activation_checkpointing": True}),
        (LARGE, 600, {"edge_chunk": 1024}),
    ],
    ids=["activations", "gradient-forces", "zero2", "checkpointing", "edge-chunk"],
)
def test_planned_is_measured(monkeypatch, config, atoms, runtime):
    peaks = []
    for _ in range(3):  # whatever else a process does can only add to its peak
        planned, kept, peak = step(monkeypatch, config, atoms, **runtime)
        peaks.append(peak)
        if planned.peak == pytest.approx(min(peaks), rel=0.1):
            break
    assert planned.peak == pytest.approx(min(peaks), rel=0.1)
    assert planned.parameters + planned.optimiser == pytest.approx(kept, rel=0.02, abs=5e6)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_weights_and_moments_by_hand(zero):
    """fp32 Adam: 12 bytes per parameter; ZeRO adds a copy of what it updates and divides by the ranks."""
    config = EGNNConfig(**WIDE)
    count = config.parameters(1)
    plan: Memory = peak_bytes(config, 0, 0, MemoryLevers(zero_stage=zero), ranks=4)
    by_hand = [12, 4 + 12 / 4, 4 + 12 / 4, (4 + 12 + 4) / 4 + 4][zero] * count
    assert plan.parameters + plan.optimiser == pytest.approx(by_hand, abs=16)


def test_a_larger_machine_needs_no_more_of_each_rank():
    config = EGNNConfig(width=4096, depth=3)
    for zero in (1, 2, 3):
        peaks = [
            peak_bytes(config, 100, 3000, MemoryLevers(zero_stage=zero), ranks=ranks).peak for ranks in (1, 2, 8, 64)
        ]
        assert peaks == sorted(peaks, reverse=True)
    by_stage = [peak_bytes(config, 100, 3000, MemoryLevers(zero_stage=zero), ranks=64).peak for zero in (0, 1, 2)]
    assert by_stage == sorted(by_stage, reverse=True)


def test_the_plan_knows_the_engines_bucket():
    assert BUCKET_NUMBERS == memory.BUCKET_NUMBERS
