"""Several ranks on a machine without a scheduler: started, told, ended together; and a GPU for each that no other has."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from gnnscale.contract.errors import Problem
from gnnscale.job import local_launcher
from tests.support import training
from tests.support.cluster import RUN, SHORT, wait
from tests.support.corpus import ENV, ROOT, execute
from workflow.config import site_files
from workflow.execute.local_processes import Gpus

# A stage of its own: what each rank does is in the word that it is given
STAGE = """
import os, signal, sys, time
rank = os.environ["RANK"]
how = dict(word.split("=") for word in sys.argv[1].split(","))[rank]
signal.signal(signal.SIGTERM, signal.SIG_IGN if how == "deaf" else lambda *_: sys.exit(75))
with open(os.environ["HERE"] + "/." + rank, "w") as file:
    file.write(str(os.getpid()))
os.replace(file.name, os.environ["HERE"] + "/" + rank)
while sum(name.isdigit() for name in os.listdir(os.environ["HERE"])) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.01)
if how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if how.isdigit():
    sys.exit(int(how))
time.sleep(600)
"""


@pytest.fixture
def begin(tmp_path):
    package = tmp_path / "gnnscale"  # first on the path is ours, of which one module is found here
    (package / "stages").mkdir(parents=True)
    (package / "__init__.py").write_text(f"__path__.append({str(ROOT / 'gnnscale')!r})\n")
    (package / "stages" / "word.py").write_text(STAGE)
    (tmp_path / "here").mkdir()
    begun = []

    def start(how: str) -> subprocess.Popen:
        env = os.environ | ENV | {"PYTHONPATH": str(tmp_path), "HERE": str(tmp_path / "here")}
        count = str(how.count("="))
        begun.append(
            subprocess.Popen(
                [sys.executable, "-m", "gnnscale.job.local_launcher", count, "word", how], env=env, cwd=tmp_path
            )
        )
        return begun[-1]

    start.pids = lambda: {path.name: int(path.read_text()) for path in (tmp_path / "here").glob("[0-9]")}
    yield start
    for process in begun:
        process.kill()


def gone(pid):
    try:
        return "State:\tZ" in open(f"/proc/{pid}/status").read()
    except OSError:
        return True


@pytest.mark.parametrize(
    ("how", "code"), [("0=0,1=0", 0), ("0=75,1=75", 75), ("0=wait,1=64", 64), ("0=3,1=wait,2=wait", 3)]
)
def test_it_ends_as_the_first_rank_that_did_not_end_well(begin, how, code):
    assert begin(how).wait(timeout=120) == code
    assert all(map(gone, begin.pids().values())), "nobody waits for one that has failed"


def test_one_that_is_deaf_is_killed_and_one_that_was_killed_is_told(begin):
    began = time.monotonic()
    assert begin("0=deaf,1=kill").wait(timeout=120) == -signal.SIGKILL
    assert all(map(gone, begin.pids().values())) and time.monotonic() - began > 4, "it had the time to end by itself"


def test_ranks_that_have_ended_unseen_are_not_lost_to_a_signal():
    """They are told, and what they ended with is still to be had."""
    ranks = [subprocess.Popen([sys.executable, "-c", "raise SystemExit(64)"]) for _ in range(3)]
    for rank in ranks:
        os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)
    local_launcher.tell(ranks, signal.SIGTERM)
    assert list(local_launcher.ends(ranks)) == [64, 64, 64]


def test_a_signal_reaches_all(begin):
    process = begin("0=wait,1=wait")
    wait(lambda: len(begin.pids()) == 2, "both ranks")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75


def test_no_rank_outlives_it(begin):
    process = begin("0=deaf,1=deaf")
    wait(lambda: len(begin.pids()) == 2, "both ranks")
    process.kill()
    process.wait()
    wait(lambda: all(map(gone, begin.pids().values())), "both ranks to end")


def test_two_ranks_train_as_one(converted, tmp_path):
    one, two = (training.prepare(tmp_path, converted, name, {"ranks": k}) for k, name in ((1, "one"), (2, "two")))
    for made, ranks in ((one, 1), (two, 2)):
        done = execute(made, ranks=ranks, timeout=300)
        assert done.returncode == 0 and f"{ranks} rank(s)" in done.stdout, done.stderr
    training.assert_equal(one, two)


def test_the_driver_starts_as_many_ranks_as_were_planned(tmp_path):
    study = {"title": "Two ranks", "data": SHORT["data"], "train": SHORT["train"], "sweeps": SHORT["sweeps"]}
    (tmp_path / "two.yaml").write_text(json.dumps(study))
    words = ["--study", str(tmp_path / "two.yaml"), "--root", str(tmp_path / "run"), "--set", "launch.ranks=2"]
    done = subprocess.run([*RUN, "run", "--until", "train", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = next((tmp_path / "run" / "train").iterdir())
    assert "-m gnnscale.job.local_launcher 2 train ." in (folder / "command.sh").read_text()
    assert "2 rank(s)" in (folder / "attempts" / "1" / "stdout").read_text()


# ----------------------------------------------------------------------------------------------------------------- GPUs
def machine(count, *more):
    gpus = f"{{count: {count}, vendor: nvidia, model: H, memory_gb: 80, peak_tflops: {{fp32: 60, bf16: 900}}}}"
    return site_files.load("local", [f"node.gpus={gpus}", *more])


def test_each_training_has_gpus_of_its_own():
    pool, seen, most = Gpus(machine(3), threading.Event()), [], []

    def train(count):
        with pool.taken(count) as visible:
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
    with Gpus(machine(4), threading.Event()).taken(1) as visible:
        assert visible == {"CUDA_VISIBLE_DEVICES": "2"}


def test_stages_without_ranks_and_machines_without_gpus_take_none():
    with Gpus(machine(2), threading.Event()).taken(0) as visible:
        assert visible == {}
    with Gpus(site_files.load("local"), threading.Event()).taken(1) as visible:
        assert visible == {}


def test_a_driver_that_stops_waits_for_no_gpu():
    stopping = threading.Event()
    pool = Gpus(machine(1), stopping)
    with pool.taken(1):
        stopping.set()
        with pool.taken(1):
            pass  # where the stage finds that it is not to begin


def test_the_memory_of_a_rank_is_its_gpus():
    assert machine(4, "launch.ranks=2").rank_bytes == 80e9


def test_more_ranks_than_gpus():
    with pytest.raises(Problem, match="4 ranks need a GPU each"):
        machine(2, "launch.ranks=4")
    with pytest.raises(Problem, match="without a scheduler the driver starts"):
        site_files.load("local", ["launch.command=mpiexec"])
