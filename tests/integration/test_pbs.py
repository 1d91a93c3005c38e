"""Jobs under the commands of PBS, by a stand-in (tests/support/pbs.py) that really checks, runs, ends and remembers them."""

import json
import signal
import time

import pytest

from tests.support.cluster import (
    BEFORE_TRAINING,
    LONG,
    SHORT,
    SOME,
    Run,
    StandIn,
    hold_training,
    make_study,
    measure_patience,
    spoil_module,
    wait_until,
)
from workflow.jobs import outcome
from workflow.scheduler.registry import SCHEDULERS

QUEUES = {"default": {"partition": "workq", "nodes": [1, 3], "max_walltime": "02:00:00"}}
ONE = {"queues": QUEUES, "node": {"cores": 4}}


@pytest.fixture(scope="module")
def pbs(tmp_path_factory):
    standin = StandIn(tmp_path_factory.mktemp("pbs") / "home", bugs=["first-only", "bad-json"])
    yield standin
    standin.empty()


@pytest.fixture(scope="module")
def data(pbs, tmp_path_factory):
    run = Run(pbs, tmp_path_factory.mktemp("data"), SHORT, ONE)
    run.start("--until", BEFORE_TRAINING[-1])
    run.end()
    return run.root


@pytest.fixture
def begin(pbs, data, tmp_path):
    begun = []

    def start(asked, **site):
        run = Run(pbs, tmp_path, asked, ONE | site, data)
        begun.append(run)
        run.start("--until", "train")
        return run

    yield start
    for run in begun:
        run.stop()
    pbs.empty()


def test_a_training_of_two_ranks_on_two_nodes(begin):
    """The stand-in's qstat prints the first job only, in broken JSON."""
    run = begin(SHORT, train={"nodes": [2, 2]})
    run.end()
    made = run.folder() / "attempts" / "1"
    assert json.loads((made / "exit.json").read_text())["hosts"] == ["127.0.1.1", "127.0.1.2"]
    assert "2 rank(s)" in (made / "stdout").read_text()
    script = (made / "job.sh").read_text()
    assert "#PBS -l select=2:ncpus=4:mpiprocs=1" in script and "#PBS -l place=scatter" in script
    assert [e["kind"] for e in run.events("ended")] == ["done"] and len(run.submitted()) == 1


def test_killed_and_cancelled(begin, pbs):
    run = begin(LONG)
    job = run.wait(run.running, "the training to run")
    run.kill()
    run.start("--until", "train")
    run.wait(lambda: run.events("adopt"), "the driver to find it")
    patience, began = measure_patience(lambda: run.call("status")), time.monotonic()
    run.driver.send_signal(signal.SIGINT)
    assert "1 job keeps running" in run.end(130) and time.monotonic() - began < patience
    assert run.submitted() == [job] and job.split(".")[0] in [id.split(".")[0] for id in pbs.active()]
    assert f"cancelled  job {job}" in run.call("cancel").stdout
    wait_until(lambda: not pbs.active(), "the job to end")


@pytest.mark.parametrize(("preemptible", "kind"), [(False, "cancelled"), (True, "preempted")])
def test_deleted_by_somebody_else(begin, pbs, tmp_path, preemptible, kind):
    """A preemptible queue deletes jobs too, which uses up no retry there."""
    queues = {"default": QUEUES["default"] | {"preemptible": preemptible}}
    run = begin(SOME, queues=queues, setup=hold_training(tmp_path))
    job = run.wait(run.running, "the training to run")
    pbs.call("qdel", job)
    (tmp_path / "go").touch()
    run.end()
    assert [e["kind"] for e in run.events("ended")] == [kind, "done"]
    assert "going on from step" in (run.folder() / "attempts" / "2" / "stdout").read_text()


def test_the_end_of_the_walltime(begin, pbs, tmp_path):
    """PBS sends no signal before it, so the job's script watches the time: here 80 s, which are over after a step."""
    half = {
        "queues": {"default": QUEUES["default"] | {"max_walltime": "00:30:00"}},
        "serial": {"queue": "default", "walltime": "00:30:00"},
    }
    over = f"""
import glob, signal, threading
begun, alarm = time.time(), signal.alarm
def watch(seconds):
    assert seconds == 80
    threading.Thread(target=ring, daemon=True).start()
def ring():
    while not any(os.stat(path).st_mtime > begun for path in glob.glob({str(tmp_path / "run/train/*/progress.json")!r})):
        time.sleep(0.05)
    alarm(1)
signal.alarm = watch
"""
    setup = spoil_module(tmp_path, over, "gnnscale.job.batch_job")
    run = begin(make_study(30000), scheduler={"signal_seconds": 1720}, setup=setup, **half)
    later = run.wait(
        lambda: [p for p in run.root.glob("train/*/attempts/[2-9]/stdout") if "going on from step" in p.read_text()],
        "another job to go on",
    )
    assert later and {e["kind"] for e in run.events("ended")} == {"stopped"}


def test_ranks_tell_where_they_are(begin, pbs, monkeypatch):
    """The ranks on both nodes see the file with which their driver asks, and continue."""
    for name, value in pbs.env.items():
        monkeypatch.setenv(name, value)
    run = begin(LONG, train={"nodes": [2, 2]})
    run.wait(run.running, "the training to run")
    (run.folder() / "attempts" / "1" / "SIGUSR2").touch()
    said = run.folder() / "attempts" / "1" / "stderr"
    run.wait(lambda: len(outcome.parse_stacks(said.read_text())) == 2, "both to say where they are")
    before = run.steps()
    run.wait(lambda: run.steps() > before, "it to go on")
    assert all(frames for frames in outcome.parse_stacks(said.read_text()).values()) and not run.events("ended")


@pytest.mark.parametrize(
    ("conf", "site", "message"),
    [
        ({}, {"queues": {"default": {"partition": "prod"}}}, "Unknown queue"),
        ({"account": "science"}, {"account": "other"}, "account not valid"),
        ({"filesystems": ["home"]}, {}, "filesystems is required"),
        ({}, {"node": {"cores": 64}}, "resource limits"),
    ],
)
def test_what_it_refuses_is_told_once(data, tmp_path, conf, site, message):
    standin = StandIn(tmp_path / "home", **conf)
    run = Run(standin, tmp_path, SHORT, ONE | site, data)
    run.start("--until", "train")
    said = run.end(1)
    assert message in said and said.count("qsub refuses the job") == 1 and len(run.events("intend")) == 1


def test_jobs_are_found_by_name_and_number(pbs, tmp_path, monkeypatch):
    for name, value in pbs.env.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "job.sh").write_text("#PBS -N gs-one\n#PBS -l select=1:ncpus=1\nexit 7\n")
    ids = [pbs.call("qsub", "job.sh", cwd=tmp_path).strip() for _ in range(3)]
    wait_until(lambda: not pbs.active(), "the jobs to end")
    seen = SCHEDULERS["pbs"].find_by_id([*ids, "99999.standin"], 60).jobs
    assert {id: (job.state, job.code) for id, job in seen.items()} == dict.fromkeys(ids, ("FAILED", 7))
    assert {job.id for job in SCHEDULERS["pbs"].find_by_name({"gs-one"}, 60)} == set(ids)
