"""Local processes: how each end is judged, and the GPUs that stages share."""

import threading
import time

import pytest

from gnnscale.contract import files
from gnnscale.contract.errors import UserError
from gnnscale.contract.results import StageError
from workflow.config import site_files
from workflow.execute.local_processes import GpuPool, judge_process
from workflow.run_directory.attempt import DISK_FULL, AttemptOutcome


@pytest.fixture
def attempt(tmp_path):
    made = tmp_path / "attempts" / "1"
    made.mkdir(parents=True)
    (made / "stdout").write_text("step 1\nstep 2\n")
    (made / "stderr").write_text("")
    return made


TAIL = ("step 1", "step 2")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            -9,
            AttemptOutcome(
                "killed",
                "killed by SIGKILL; if nobody did that, the machine ran out of memory",
                "type the same command again to go on",
                TAIL,
            ),
        ),
        (-15, AttemptOutcome("killed", "killed by SIGTERM", "type the same command again to go on", TAIL)),
        (3, AttemptOutcome("application", "exit code 3", tail=TAIL)),
        (0, AttemptOutcome("application", "ended without a valid result: output x is missing", tail=TAIL)),
    ],
)
def test_an_end_without_words_of_the_stage_is_judged_by_its_exit_code(tmp_path, attempt, code, expected):
    assert judge_process(tmp_path, attempt, code, "output x is missing") == expected


@pytest.mark.parametrize(("kind", "tail"), [("data", ()), ("out-of-memory", ()), ("application", TAIL)])
def test_the_stage_says_best_why_it_failed(tmp_path, attempt, kind, tail):
    error = StageError(id="train/x", kind=kind, message="no atoms", hint="add some")
    files.write_model(tmp_path / "error.json", error)
    assert judge_process(tmp_path, attempt, 64, "not run yet") == AttemptOutcome(kind, "no atoms", "add some", tail)


def test_a_full_disk_explains_any_exit_code(tmp_path, attempt, monkeypatch):
    monkeypatch.setattr(files, "disk_is_full", lambda folder: folder == tmp_path)
    assert judge_process(tmp_path, attempt, 1, "not run yet") == DISK_FULL


# ----------------------------------------------------------------------------------------------------------------- GPUs
def machine(count, *more):
    gpus = f"{{count: {count}, vendor: nvidia, model: H, memory_gb: 80, peak_tflops: {{fp32: 60, bf16: 900}}}}"
    return site_files.load("local", [f"node.gpus={gpus}", *more])


def test_each_training_has_gpus_of_its_own():
    pool, seen, most = GpuPool(machine(3), threading.Event()), [], []

    def train(count):
        with pool.reserve(count) as visible:
            mine = visible["CUDA_VISIBLE_DEVICES"].split(",")
            seen.extend(mine)
            most.append(len(set(seen)) == len(seen))
            time.sleep(0.02)
            for gpu in mine:
                seen.remove(gpu)

    threads = [threading.Thread(target=train, args=(1 + k % 2,)) for k in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(most) == 20 and all(most) and sorted(pool.free) == ["0", "1", "2"]


def test_the_rest_of_the_machine_is_left_to_others(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    with GpuPool(machine(4), threading.Event()).reserve(1) as visible:
        assert visible == {"CUDA_VISIBLE_DEVICES": "2"}


def test_stages_without_ranks_and_machines_without_gpus_take_none():
    with GpuPool(machine(2), threading.Event()).reserve(0) as visible:
        assert visible == {}
    with GpuPool(site_files.load("local"), threading.Event()).reserve(1) as visible:
        assert visible == {}


def test_a_driver_that_stops_waits_for_no_gpu():
    stopping = threading.Event()
    pool = GpuPool(machine(1), stopping)
    with pool.reserve(1):
        stopping.set()
        with pool.reserve(1):
            pass  # where the stage finds that it is not to begin


def test_the_memory_of_a_rank_is_its_gpus():
    assert machine(4, "launch.ranks=2").rank_bytes == 80e9


def test_more_ranks_than_gpus():
    with pytest.raises(UserError, match="4 ranks need a GPU each"):
        machine(2, "launch.ranks=4")
    with pytest.raises(UserError, match="without a scheduler the driver itself starts"):
        site_files.load("local", ["launch.command=mpiexec"])
