"""A forked process does what a fresh one does, belongs to the process that asked, and outlives its warm parent."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from gnnscale.machine import warm_parent
from gnnscale.machine.warm_parent import ForkedProcess, WarmParent
from tests.support.cluster import PATIENCE, wait_until
from tests.support.corpus import ROOT
from tests.support.warm import Warm, list_processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a child to the process that asked")


@pytest.fixture
def warm(tmp_path, monkeypatch):
    """Return a warm parent that looks at the sources of the test, whatever somebody changes in the real ones."""
    monkeypatch.setattr(warm_parent, "ROOT", tmp_path / "overlay")
    # A suite in the background has SIGINT ignored, and so would all that it starts.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    made = Warm(tmp_path)
    yield made
    made.parent.close()
    signal.signal(signal.SIGINT, interrupt)


def gone(pid):
    try:
        return "State:\tZ" in open(f"/proc/{pid}/status").read()
    except OSError:
        return True


def test_a_forked_process_is_as_a_fresh_one(warm):
    """Its variables, directory, path, signals, limits, session, open files, input and parent."""
    (code, out, err), (fresh_code, fresh_out, fresh_err) = (
        run("describe", "a", "b c", PWD="x", CUDA_VISIBLE_DEVICES="1") for run in (warm.run, warm.run_fresh)
    )
    told, fresh = json.loads(out), json.loads(fresh_out)
    assert told == fresh and fresh["environ"]["CUDA_VISIBLE_DEVICES"] == "1" and fresh["parent"] == os.getpid()
    assert (code, err) == (fresh_code, fresh_err) == (0, "a warning\n")


@pytest.mark.parametrize("how", ["0", "64", "75", "raise", "SIGKILL", "SIGSEGV", "SIGTERM", "words"])
def test_every_end_is_that_of_a_fresh_process(warm, how):
    """A child that crashes hurts nobody else."""
    (code, out, err), (fresh_code, fresh_out, fresh_err) = (run("end", how) for run in (warm.run, warm.run_fresh))
    assert (code, out, err.strip().splitlines()[-1:]) == (fresh_code, fresh_out, fresh_err.strip().splitlines()[-1:])
    server = warm.parent.server.process.pid
    assert warm.run("describe")[0] == 0 and warm.parent.server.process.pid == server


def test_a_limit_of_memory_holds(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**33, hard))
    warm = Warm(tmp_path)
    try:
        forked = [warm.run("fill", str(size)) for size in (2**20, 2**34)]
        fresh = [warm.run_fresh("fill", str(size)) for size in (2**20, 2**34)]
    finally:
        warm.parent.close()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    for code, out, err in (forked[0], fresh[0]):
        assert (code, out, err) == (0, "there was room\n", "")
    for code, out, err in (forked[1], fresh[1]):
        assert (code, out) == (1, "") and err.endswith("MemoryError\n")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL])
def test_a_signal_to_the_group_reaches_it(warm, signum):
    process = warm.fork("wait")
    wait_until((warm.place / "began").exists, "it to begin")
    assert os.getpgid(process.pid) == process.pid == int((warm.place / "began").read_text())
    os.killpg(process.pid, signum)
    assert process.wait(timeout=PATIENCE) == -signum
    process.send_signal(signal.SIGTERM)  # which nobody receives


def test_a_warm_parent_that_dies_is_started_again_and_its_children_live_on(warm):
    process = warm.fork("wait")
    wait_until((warm.place / "began").exists, "it to begin")
    first = warm.parent.server.process.pid
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: gone(first), "its end")
    assert process.poll() is None and warm.run("describe")[0] == 0
    assert warm.parent.server.process.pid != first
    (warm.place / "go").touch()
    assert process.wait(timeout=PATIENCE) == 0


def test_changed_code_is_seen(warm):
    assert json.loads(warm.run("describe")[1])["arguments"] == []
    first, program = warm.parent.server.process.pid, warm.place / "overlay" / "gnnscale" / "stages" / "programs.py"
    assert warm.run("describe")[0] == 0 and warm.parent.server.process.pid == first
    program.write_text(program.read_text().replace('"arguments": words', '"arguments": "changed"'))
    assert json.loads(warm.run("describe")[1])["arguments"] == "changed" and warm.parent.server.process.pid != first


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "MALLOC_TOP_PAD_", "PYTHONPATH"])
def test_another_environment_needs_a_fresh_process(warm, name):
    assert warm.fork("describe", **{name: "2"}) is None
    assert warm.run("describe", CUDA_VISIBLE_DEVICES="3")[0] == 0


@pytest.mark.parametrize(
    "before",
    [
        "raise ImportError\n",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n",
    ],
    ids=["it cannot import", "it has threads"],
)
def test_a_warm_parent_that_cannot_serve_is_not_tried_again(tmp_path, before, monkeypatch):
    monkeypatch.setattr(warm_parent, "ROOT", tmp_path / "overlay")
    warm = Warm(tmp_path, before)
    assert warm.fork("describe") is None and not warm.parent.is_starting()
    monkeypatch.setattr(warm_parent, "Server", None)
    assert warm.fork("describe") is None and warm.parent.server is None


def test_it_says_when_it_is_ready(warm):
    assert warm.parent.is_starting(), "nothing is there at once"
    wait_until(lambda: not warm.parent.is_starting(), "its libraries")
    assert warm.run("describe")[0] == 0


def test_an_environment_as_large_as_modules_make_it(warm):
    """One that is too large for a message goes to a fresh process, and the warm parent stays."""
    large, too_large = {"MASTER_ADDR": "x" * 100_000}, {"MASTER_ADDR": "x" * 131_000}
    assert json.loads(warm.run("describe", **large)[1])["environ"]["MASTER_ADDR"] == "x" * 100_000
    server = warm.parent.server.process.pid
    assert warm.fork("describe", **too_large) is None
    assert warm.run("describe")[0] == 0 and warm.parent.server.process.pid == server


def test_a_system_without_subreapers_has_fresh_processes(warm, monkeypatch):
    monkeypatch.setattr(warm_parent, "adopt_orphans", lambda wanted: False)
    assert warm.fork("describe") is None


ASK = """
import os, sys, time
from pathlib import Path
from gnnscale.machine.warm_parent import WarmParent
parent = WarmParent(os.environ)
with open("out", "wb") as out, open("err", "wb") as err:
    process = parent.fork("wait", [], Path.cwd(), os.environ, out, err)
print(process.pid, parent.server.process.pid, flush=True)
time.sleep(600)
"""


def test_nothing_outlives_the_process_that_asked(warm):
    asking = subprocess.Popen(
        [sys.executable, "-c", ASK], env=warm.environ, cwd=warm.place, stdout=subprocess.PIPE, text=True
    )
    pids = [int(word) for word in asking.stdout.readline().split()]
    wait_until((warm.place / "began").exists, "it to begin")
    asking.kill()
    asking.communicate()
    wait_until(lambda: all(map(gone, pids)), "both to end")


def test_a_closed_warm_parent_leaves_its_children(warm):
    process = warm.fork("wait")
    warm.parent.close()
    (warm.place / "go").touch()
    assert process.wait(timeout=PATIENCE) == 0 and warm.parent.server is None


def test_a_child_that_nobody_knows_does_not_begin(warm, monkeypatch):
    """Its answer comes too late, so that a fresh process has been started in its place."""
    receive = socket.socket.recv

    def receive_late(channel, count):
        if channel.gettimeout() == warm_parent.ANSWER_SECONDS:
            raise TimeoutError
        return receive(channel, count)

    monkeypatch.setattr(socket.socket, "recv", receive_late)
    assert warm.fork("wait") is None
    warm.parent.close()
    wait_until(lambda: not list_processes(warm.place), "it to end")
    assert not (warm.place / "began").exists()


def test_a_forked_process_is_waited_for_as_others_are():
    if (pid := os.fork()) == 0:
        time.sleep(0.1)
        os._exit(3)
    process = ForkedProcess(pid)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.0)
    assert (process.wait(), process.poll(), process.wait(timeout=0.0)) == (3, 3, 3)


def test_the_source_code_is_read_whole(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "gnnscale" / "machine", tmp_path / "gnnscale")
    monkeypatch.setattr(warm_parent, "ROOT", tmp_path)
    before = warm_parent.read_source_state()
    assert not [name for name, _, _ in before if "__pycache__" in name] and before == warm_parent.read_source_state()
    for change in (lambda path: path.write_bytes(b""), lambda path: path.unlink(), lambda path: path.touch()):
        change(tmp_path / "gnnscale" / "rank_env.py")
        assert warm_parent.read_source_state() != before
        before = warm_parent.read_source_state()


def test_two_environments_that_differ_only_where_it_is_read_late():
    parent = WarmParent({"A": "1", "PWD": "/x"})
    assert parent.serves({"A": "1", "PWD": "/y", "MASTER_PORT": "1"})
    assert not parent.serves({"A": "2"}) and not parent.serves({}) and not parent.serves({"A": "1", "B": ""})
