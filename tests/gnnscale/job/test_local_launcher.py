"""Several ranks on a machine without a scheduler: started, signalled and ended together, each with a GPU of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gnnscale.job import local_launcher
from tests.support import training
from tests.support.cluster import PATIENCE, RUN, SHORT, wait_until
from tests.support.corpus import ENV, ROOT, run_stage

# A stage for this test: the argument says what each rank does.
STAGE = """
import os, signal, sys, time
rank = os.environ["RANK"]
how = dict(word.split("=") for word in sys.argv[1].split(","))[rank]
signal.signal(signal.SIGTERM, signal.SIG_IGN if how == "ignore" else lambda *_: sys.exit(75))
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
    package = tmp_path / "gnnscale"  # first on the path, so that one module is found here
    (package / "stages").mkdir(parents=True)
    (package / "__init__.py").write_text(f"__path__.append({str(ROOT / 'gnnscale')!r})\n")
    (package / "stages" / "__init__.py").touch()
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
def test_it_ends_with_the_code_of_the_first_failure(begin, how, code):
    assert begin(how).wait(timeout=PATIENCE) == code
    assert all(map(gone, begin.pids().values())), "no rank waits for one that has failed"


def test_a_rank_that_ignores_sigterm_is_killed(begin):
    began = time.monotonic()
    assert begin("0=ignore,1=kill").wait(timeout=PATIENCE) == -signal.SIGKILL
    assert all(map(gone, begin.pids().values())) and time.monotonic() - began > 4, "it had the time to end by itself"


def test_ranks_that_have_ended_unseen_are_not_lost_to_a_signal():
    """A signal to a rank that has ended does not take its exit code away."""
    ranks = [subprocess.Popen([sys.executable, "-c", "raise SystemExit(64)"]) for _ in range(3)]
    for rank in ranks:
        os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)
    local_launcher.send_signal(ranks, signal.SIGTERM)
    assert list(local_launcher.wait_for_each(ranks)) == [64, 64, 64]


def test_a_signal_reaches_all_ranks(begin):
    process = begin("0=wait,1=wait")
    wait_until(lambda: len(begin.pids()) == 2, "both ranks")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE) == 75


def test_no_rank_outlives_the_launcher(begin):
    process = begin("0=ignore,1=ignore")
    wait_until(lambda: len(begin.pids()) == 2, "both ranks")
    process.kill()
    process.wait()
    wait_until(lambda: all(map(gone, begin.pids().values())), "both ranks to end")


@pytest.mark.slow
def test_two_ranks_train_as_one(converted, tmp_path):
    one, two = (
        training.prepare_training(tmp_path, converted, name, {"ranks": k}) for k, name in ((1, "one"), (2, "two"))
    )
    for made, ranks in ((one, 1), (two, 2)):
        done = run_stage(made, ranks=ranks, timeout=300)
        assert done.returncode == 0 and f"{ranks} rank(s)" in done.stdout, done.stderr
    training.assert_equal(one, two)


@pytest.mark.slow
def test_the_driver_starts_as_many_ranks_as_were_planned(tmp_path):
    study = {"title": "Two ranks", "data": SHORT["data"], "train": SHORT["train"], "sweeps": SHORT["sweeps"]}
    (tmp_path / "two.yaml").write_text(json.dumps(study))
    words = ["--study", str(tmp_path / "two.yaml"), "--root", str(tmp_path / "run"), "--set", "launch.ranks=2"]
    done = subprocess.run([*RUN, "run", "--until", "train", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = next((tmp_path / "run" / "train").iterdir())
    assert "-m gnnscale.job.local_launcher 2 train ." in (folder / "command.sh").read_text()
    assert "2 rank(s)" in (folder / "attempts" / "1" / "stdout").read_text()
