"""Several ranks give the result of one, under every ZeRO stage, also if they are stopped at any point."""

import os
import signal
import time

import pytest

from gnnscale.contract import files, stage_run
from gnnscale.train import checkpoint
from tests.support.training import (
    HELD,
    assert_equal,
    prepare_training,
    read_losses,
    read_weights,
    run_on_ranks,
    start_on_ranks,
    train_here,
    train_several,
    wait_for_ranks,
)

GRADIENT = {"model": {"forces": "gradient"}, "optim": {"stress_weight": 0.5}}
RUNTIMES = {
    "zero0": {},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero0-micro": {"micro_batch_edges": 150},
    "zero1-micro": {"zero_stage": 1, "micro_batch_edges": 150},
    "zero2-micro": {"zero_stage": 2, "micro_batch_edges": 150},
    "zero2-again": {"zero_stage": 2, "activation_checkpointing": True},
    "zero2-chunk": {"zero_stage": 2, "edge_chunk": 100},
}
DIRECT = {
    "zero3": {"zero_stage": 3},
    "zero3-micro": {"zero_stage": 3, "micro_batch_edges": 150},
    "zero3-again": {"zero_stage": 3, "activation_checkpointing": True},
    "zero3-chunk": {"zero_stage": 3, "edge_chunk": 100},
}


@pytest.mark.parametrize(("changes", "more"), [({}, DIRECT), (GRADIENT, {})], ids=["direct", "gradient"])
def test_two_ranks_equal_one(converted, tmp_path, changes, more):
    """The shares of the ranks have unequal numbers of atoms and of micro-batches, or this would test little."""
    alone = train_here(prepare_training(tmp_path, converted, "alone", **changes))
    made = [
        prepare_training(tmp_path, converted, name, runtime, **changes) for name, runtime in (RUNTIMES | more).items()
    ]
    train_several(2, *made)
    for directory in made:
        assert_equal(alone, directory)


def test_ranks_choose_one_engine(converted, tmp_path):
    """If one of them has no library, none uses it, or they would wait for each other for ever."""
    made = prepare_training(tmp_path, converted)
    program = f"""
import os
if os.environ["RANK"] == "1":
    os.environ["GNNSCALE_NATIVE"] = "0"
from pathlib import Path
from tests.support.training import train_here
train_here(Path({str(made)!r}), 3)
os.sys.stdout.flush()
os._exit(0)
"""
    for code, said in run_on_ranks(2, "-c", program):
        assert code == 0, said
        assert "steps are taken by DeepSpeed and PyTorch (no native library" in said


def test_a_batch_smaller_than_the_ranks(converted, tmp_path):
    changes = {"optim": {"batch": 2, "epochs": 0.5}}
    alone = train_here(prepare_training(tmp_path, converted, "alone", **changes))
    made = [prepare_training(tmp_path, converted, f"zero{z}", {"zero_stage": z}, **changes) for z in (0, 3)]
    train_several(3, *made)
    for directory in made:
        assert_equal(alone, directory)


def restaged(made, zero):
    spec = stage_run.Run(made).spec
    runtime = spec.runtime.model_copy(update={"zero_stage": zero})
    files.write_model(made / "spec.json", spec.model_copy(update={"runtime": runtime}))


def test_a_run_goes_on_with_other_ranks_and_zero_stages(converted, tmp_path):
    """1 rank, then 2 under ZeRO 1, 3, 2, then 1 again follow the trajectory of an undisturbed run."""
    alone, made = (
        train_here(prepare_training(tmp_path, converted, "alone")),
        train_here(prepare_training(tmp_path, converted), stop_at=5),
    )
    averaged = train_here(prepare_training(tmp_path, converted, "averaged", optim={"ema": 0.9}))
    again = train_here(prepare_training(tmp_path, converted, "again", {"zero_stage": 1}, optim={"ema": 0.9}), stop_at=8)
    for zero, stop_at in ((1, 9), (3, 12), (2, 16)):
        restaged(made, zero)
        train_several(2, f"{made}@{stop_at}", again)
        newest = checkpoint.list_checkpoints(made / "checkpoints")[-1]
        assert newest.name == f"step-{stop_at:09d}" and len(list(newest.glob("*.safetensors"))) == 2
    restaged(made, 0)
    assert_equal(alone, train_here(made))
    assert_equal(averaged, again)


@pytest.mark.parametrize(("signum", "zero"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 3)])
def test_one_rank_told_to_stop_stops_all_and_nothing_is_lost(converted, tmp_path, signum, zero):
    whole, made = (prepare_training(tmp_path, converted, name, {"zero_stage": zero}) for name in ("whole", "made"))
    ranks = start_on_ranks(2, "-c", HELD, str(made))
    while not (made / "progress.json").exists():
        assert all(rank.poll() is None for rank in ranks), wait_for_ranks(ranks)
        time.sleep(0.01)
    os.kill(ranks[1].pid, signum)
    (made / "go").touch()
    for code, said in wait_for_ranks(ranks):
        assert code == 75, said
        assert "checkpoint at step" in said
    train_several(2, whole, made)
    assert read_losses(made) == read_losses(whole)
    assert all((read_weights(made)[name] == tensor).all() for name, tensor in read_weights(whole).items()), (
        "bit for bit"
    )


def test_ranks_with_different_specs_are_refused(converted, tmp_path):
    one, other = (prepare_training(tmp_path, converted, name, seed=seed) for name, seed in (("one", 0), ("other", 1)))
    ranks = start_on_ranks(
        2,
        "-c",
        f"""
import os, sys
from gnnscale.job import stage_process
from gnnscale.stages.train import main
sys.argv = ["train", [{str(one)!r}, {str(other)!r}][int(os.environ["RANK"])]]
stage_process.run(main)
""",
    )
    for code, said in wait_for_ranks(ranks):
        assert code == 64, said
        assert "rank 1" in said and "another spec.json (train/other) than rank 0" in said and "Traceback" not in said
    assert not (one / "checkpoints").exists()
