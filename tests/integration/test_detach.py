"""A driver that outlives its session: by nohup, in tmux and as a job of a real Slurm; followed, refused a second, stopped."""

import os
import shlex
import signal
import subprocess
import sys

import pytest

from gnnscale.contract.exit_codes import BUSY
from tests.support.cluster import LONG, Run, wait_until
from tests.support.corpus import ROOT
from workflow.detach.record import driver_name
from workflow.run_directory import journal, lease

RUN = [sys.executable, str(ROOT / "workflow" / "run.py")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a run directory whose driver does not outlive the test."""
    monkeypatch.setenv("TMUX_TMPDIR", str(tmp_path))
    root = tmp_path / "run"
    yield root
    if driver := lease.live_driver(root):
        os.kill(driver["pid"], signal.SIGKILL)


def call(*words, root):
    return subprocess.run([*RUN, *words, "--root", str(root)], capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("way", ["nohup", "tmux"])
def test_a_driver_outlives_its_session_until_it_is_stopped(place, way):
    typed = shlex.join(
        [*RUN, "run", "--detach", "--study", "smoke", "--root", str(place), "--set", f"driver.way={way}"]
    )
    logged_in = ["sh", "-c", f"{typed}; code=$?; [ $code = 0 ] || exit $code; kill -HUP 0"]
    done = subprocess.run(logged_in, capture_output=True, text=True, start_new_session=True, timeout=200)
    assert done.returncode == -signal.SIGHUP, done.stderr
    assert f"detached  by {way}" in done.stdout and f"stop --root {place}" in done.stdout
    driver = lease.live_driver(place)
    assert os.getsid(driver["pid"]) != os.getsid(0)
    assert f"driver pid {driver['pid']}" in call("status", root=place).stdout
    again = call("run", "--detach", "--study", "smoke", root=place)
    assert again.returncode == BUSY and "another driver is running" in again.stderr
    stopped = call("stop", root=place)
    assert f"stopped the driver (pid {driver['pid']}" in stopped.stdout and lease.live_driver(place) is None
    assert "stopped; to continue: " in (place / "driver.log").read_text()
    assert "no driver is running" in call("stop", root=place).stdout


def test_mistakes_are_told_before_the_driver_is_detached(place):
    for words, said in (
        (["--site", "lumi", "--set", "host=null"], "charges jobs to an account, and none is given"),
        (["--study", "smoke", "--set", "driver.way=screen", "--set", "launch.ranks=2"], "screen is not there"),
    ):
        done = call("run", "--detach", *words, root=place)
        assert done.returncode == 2 and said in done.stderr, done.stdout + done.stderr
        assert lease.live_driver(place) is None


def test_a_driver_at_its_limit_of_cpu_time_says_what_to_type(place):
    assert call("run", "--detach", "--study", "smoke", "--set", "driver.way=nohup", root=place).returncode == 0
    wait_until(lambda: journal.read_events(place / "events.jsonl"), "the driver to have begun")
    os.kill(lease.live_driver(place)["pid"], signal.SIGXCPU)
    wait_until(lambda: lease.live_driver(place) is None, "the driver to stop")
    said = (place / "driver.log").read_text()
    assert "limit of CPU time" in said and "--detach" in said and "stopped; to continue" in said


def test_a_driver_in_a_job_submits_itself_again(slurm, data, tmp_path):
    """Its job gives it two seconds, then the next job has it."""
    driver = {"way": "job", "queue": "default", "walltime": "00:01:00"}
    run = Run(slurm, tmp_path, LONG, {"driver": driver, "scheduler": {"signal_seconds": 58}}, data)
    name = driver_name(run.root)

    def drivers():
        return {id for id, each, _ in slurm.jobs() if each == name}

    try:
        done = run.call("run", "--detach", "--until", "train", "--set", "queues.default.max_walltime=01:00:00")
        assert done.returncode == 0 and "detached  as job" in done.stdout, done.stdout + done.stderr
        wait_until(lambda: len(drivers()) > 1, "the driver's second job")
        assert len(run.submitted()) <= 1, "the training's job is adopted"
    finally:
        said = run.call("stop", "--set", "queues.default.max_walltime=01:00:00").stdout
        wait_until(lambda: not drivers() & {*slurm.active()}, "the driver's job to end")
        slurm.empty()
    assert "job" in said or "stopped the driver" in said, said
