"""The planner's arithmetic against the tensors of real training steps."""

import json

import pytest

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.architectures.memory import Memory, MemoryLevers, peak_bytes
from gnnscale.contract.stage_spec import Runtime
from tests.support.training import run_on_ranks

DEGREE = 30
LARGE, WIDE = {"width": 256, "depth": 3}, {"width": 1024, "depth": 3}


def measure(config, atoms, runtime):
    """Return the bytes between steps and at the peak of a real step in a process of its own."""
    case = {"config": config, "atoms": atoms, "degree": DEGREE, "optim": {}, "runtime": runtime, "tensors": True}
    ((code, output),) = run_on_ranks(1, "-m", "tests.support.synthetic", json.dumps(case))
    assert code == 0, output
    found = json.loads(output.splitlines()[-1])
    return found["kept"], found["peak"]


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
def test_planned_is_measured(config, atoms, runtime):
    planned = peak_bytes(EGNNConfig(**config), atoms, atoms * DEGREE, Runtime(**runtime).memory_levers)
    kept, peak = measure(config, atoms, runtime)
    assert planned.peak == pytest.approx(peak, rel=0.1)
    assert planned.parameters + planned.optimiser == pytest.approx(kept, rel=0.02, abs=1e6)


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
