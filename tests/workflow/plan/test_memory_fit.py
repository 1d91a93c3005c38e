"""The planner chooses no lever if a training fits, levers one by one if not, and a refusal in words if none is enough."""

import pytest

from gnnscale.architectures.memory import peak_bytes
from gnnscale.contract.settings import OptimSettings, TrainSettings
from workflow.config import site_files
from workflow.plan import memory_fit

LOCAL = site_files.load("local")
ATOMS, EDGES = 15.0, 300.0  # per structure


def settings(width, batch=64):
    return TrainSettings(model={"kind": "egnn", "form": "edge", "width": width}, optim=OptimSettings(batch=batch))


def site(gigabytes, ranks=1):
    node = LOCAL.node.model_copy(update={"memory_gb": gigabytes, "cores": 1})
    return LOCAL.model_copy(update={"node": node, "launch": LOCAL.launch.model_copy(update={"ranks": ranks})})


def choose(asked, where):
    return memory_fit.choose_levers(asked, 5, ATOMS, EDGES, where)


def test_nothing_is_done_where_there_is_room():
    chosen = choose(settings(64), site(64))
    assert chosen.description == "" and chosen.refusal == "" and chosen.runtime.edge_chunk is None


def test_levers_come_one_by_one_as_memory_shrinks():
    asked, said = settings(512, batch=256), []
    for gigabytes in (64, 8, 4, 2.2, 1.6, 1.2, 0.9, 0.75):
        chosen = choose(asked, site(gigabytes))
        if chosen.refusal:
            break
        assert chosen.memory.peak + memory_fit.LIBRARY_BYTES <= gigabytes * 1e9
        said.append(chosen.description)
    assert said[0] == "" and any("at a time" in s for s in said) and any("micro-batches" in s for s in said)
    assert sorted(said, key=len) == said, "each lever on top of the one before"
    assert chosen.refusal


def test_more_ranks_bring_zero_into_play():
    asked = settings(3000, batch=8)
    alone, many = choose(asked, site(3.0)), choose(asked, site(8 * 3.0, ranks=8))
    assert alone.refusal and "weights, gradients and moments" in alone.refusal
    assert not many.refusal and many.runtime.zero_stage > 0 and "ZeRO" in many.description


@pytest.mark.parametrize("width", [64, 1024])
def test_the_reported_memory_is_that_of_the_choice(width):
    asked = settings(width)
    chosen = choose(asked, site(64))
    batch = memory_fit.LARGEST_OVER_MEAN_BATCH * asked.optim.batch
    assert chosen.memory == peak_bytes(
        asked.model, batch * ATOMS, batch * EDGES, chosen.runtime.memory_levers, "fp32", 1, 5
    )
