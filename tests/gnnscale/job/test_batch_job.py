"""The program of a batch job, with a line of sh for each stage; test_launch.py runs the whole script of a job."""

import errno
import json
import os
import platform
import shlex
import signal
import subprocess
import sys

import pytest

from gnnscale.job import batch_job
from tests.support import corpus
from tests.support.cluster import PATIENCE, wait_until
from tests.support.warm import list_processes, make_programs


def planned(folder, line="", **more):
    (folder / "attempts" / "1").mkdir(parents=True, exist_ok=True)
    return {
        "folder": str(folder),
        "number": 1,
        "first": 0,
        "nodes": 1,
        "per_node": 1,
        "after": None,
        "check": None,
        "command": f"sh -c '{line}'",
    } | more


ALLOCATION = {"id": ["echo", "$PBS_JOBID"], "hosts": ["cat", "$PBS_NODEFILE"]}


class Started:
    """A running batch job, in an allocation as PBS describes one."""

    def __init__(self, place, stages, env=None, start_new_session=False, nodes=("n1",), **more):
        plan = {"allocation": ALLOCATION, "interface": None, "seconds": None, "slots": None, "stages": stages} | more
        (place / "plan").write_text(json.dumps(plan))
        (place / "nodes").write_text("\n".join(nodes))
        here = os.environ | corpus.ENV | {"PBS_JOBID": "7.server", "PBS_NODEFILE": str(place / "nodes")} | (env or {})
        self.place = place
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gnnscale.job.batch_job"],
            stdin=open(place / "plan"),
            env=here,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=start_new_session,
        )

    def wait(self, *names):
        for name in names:
            wait_until(lambda name=name: (self.place / name).exists() or self.process.poll() is not None, name)
            assert (self.place / name).exists(), self.process.stdout.read()

    def end(self, expected):
        said, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == expected, said
        return said


def code(folder):
    return json.loads((folder / "attempts" / "1" / "exit.json").read_text())["code"]


@pytest.mark.parametrize("check", [None, "true"], ids=["at once", "after a node check"])
def test_a_stage_that_cannot_start_does_not_stop_the_others(tmp_path, check):
    a, b = tmp_path / "a", tmp_path / "b"
    (a / "attempts" / "1" / "stdout").mkdir(parents=True)  # in the place of its output file
    said = Started(tmp_path, [planned(a, check=check), planned(b, "sleep 1; touch done")]).end(1)
    assert said == f"{a / 'attempts' / '1' / 'stdout'}: is a directory\n"
    assert (code(a), code(b)) == (1, 0) and (b / "done").exists()


@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, 74), (errno.EDQUOT, 74), (errno.ENOENT, 1)])
def test_a_full_disk_has_its_exit_code(tmp_path, number, expected):
    batch_job.Attempt(planned(tmp_path), "7", ["n1"], "n1", 1).fail(OSError(number, "so", "x"))
    assert code(tmp_path) == expected


def test_a_signal_that_cannot_be_forwarded_does_not_stop_the_others(tmp_path):
    """Signals go by files, as into a container; the file of the first stage cannot be written."""
    a, b = tmp_path / "a", tmp_path / "b"
    unreachable = "ln -s /nowhere/at/all attempts/1/SIGUSR1; touch ready; until [ -e ../go ]; do sleep 0.05; done"
    waits = "touch ready; until [ -e attempts/1/SIGUSR1 ]; do sleep 0.05; done; exit 75"
    started = Started(tmp_path, [planned(a, unreachable, by_file=True), planned(b, waits, by_file=True)])
    started.wait("a/ready", "b/ready")
    started.process.send_signal(signal.SIGUSR1)
    started.wait("b/attempts/1/exit.json")
    (tmp_path / "go").touch()
    assert "SIGUSR1: no such file or directory" in started.end(75)
    assert (code(a), code(b)) == (0, 75)


@pytest.mark.parametrize(
    ("nodes", "wanted", "used"),
    [
        (["n1", "n2", "n2", "n3"], 2, ["n2", "n3"]),
        (["n2.site.org", "n1.site.org"], 1, ["n2.site.org"]),
        (["n2", "n3"], 2, ["n2", "n3"]),
    ],
)
def test_a_job_leaves_out_a_host_that_failed_before(tmp_path, nodes, wanted, used):
    """Its ranks meet on the first that is used, also where the job itself is on the other."""
    plan = planned(tmp_path / "a", "echo $MASTER_ADDR >master; echo {hosts} >hosts", nodes=wanted)
    Started(tmp_path, [plan], nodes=nodes, avoid=["n1"]).end(0)
    assert (tmp_path / "a" / "hosts").read_text().strip() == ",".join(used)
    assert (tmp_path / "a" / "master").read_text().strip() == ("127.0.0.1" if wanted == 1 else used[0])


def test_a_job_with_too_few_other_hosts_ends_at_once(tmp_path):
    plans = [planned(tmp_path / name, "touch began", first=k) for k, name in enumerate("ab")]
    Started(tmp_path, plans, nodes=["n1", "n2"], avoid=["n1"]).end(76)
    for name in "ab":
        left = json.loads((tmp_path / name / "attempts" / "1" / "exit.json").read_text())
        assert (left["code"], left["begun"], list(left["sick"])) == (76, False, ["n1"])
        assert not (tmp_path / name / "began").exists()


@pytest.mark.parametrize(("given", "first", "second"), [("", "0", "1"), ("4,7", "4", "7")])
def test_stages_side_by_side_see_a_gpu_each(tmp_path, given, first, second):
    """The next stage sees the GPU that has become free, of those that the scheduler gave if it gave some."""
    line = "echo $CUDA_VISIBLE_DEVICES >gpu; until [ -e go ]; do sleep 0.05; done"
    stages = [planned(tmp_path / name, line) for name in "abc"]
    started = Started(tmp_path, stages, {"CUDA_VISIBLE_DEVICES": given}, slots=2, gpus=["CUDA_VISIBLE_DEVICES", 2])
    started.wait("a/gpu", "b/gpu")
    (tmp_path / "b" / "go").touch()
    started.wait("c/gpu")
    for name in "ac":
        (tmp_path / name / "go").touch()
    started.end(0)
    assert [(tmp_path / name / "gpu").read_text().strip() for name in "abc"] == [first, second, second]


# --------------------------------------------------------------------------- stages forked from a process that is warm
def forked(folder, behave, kind="evaluate", **more):
    """Return the plan of a stage whose only rank nothing launches; see tests/support/warm.py."""
    made = planned(folder, **more)
    (folder / "behave").write_text(behave)
    return made | {"command": shlex.join([sys.executable, "-m", "gnnscale.job.rank_wrapper", "attempts/1", kind])}


def read(folder, name):
    return (folder / "attempts" / "1" / name).read_text()


def test_stages_without_a_launcher_are_forked(tmp_path):
    """Each has its own directory, variables and files, and ends as it would alone."""
    stages = [
        forked(tmp_path / name, behave) for name, behave in (("a", "describe"), ("b", "end 64"), ("c", "describe"))
    ]
    Started(tmp_path, stages, make_programs(tmp_path)).end(64)
    told = {name: json.loads(read(tmp_path / name, "stdout")) for name in "ac"}
    for name, found in told.items():
        assert found["cwd"] == found["path"][0] == str(tmp_path / name) and found["environ"]["GNNSCALE_STACKS"]
    assert {int(told[name]["environ"]["MASTER_PORT"]) for name in "ac"} == {10007, 10009}
    assert [code(tmp_path / name) for name in "abc"] == [0, 64, 0]
    assert (
        read(tmp_path / "b", "failed") == f"64 0 {platform.node()}\n"
        and read(tmp_path / "a", "stderr") == "a warning\n"
    )


def test_a_forked_stage_is_told_to_stop_and_where_it_is(tmp_path):
    """Signals go to the whole group, as some schedulers send them: the process from which stages are forked stays."""
    stages = [forked(tmp_path / name, "wait") for name in "ab"]
    started = Started(tmp_path, stages, make_programs(tmp_path), start_new_session=True)
    started.wait("a/began", "b/began")
    started.process.send_signal(signal.SIGUSR2)
    for name in "ab":
        wait_until(lambda name=name: "in wait" in read(tmp_path / name, "stderr"), "its stack")
    os.killpg(started.process.pid, signal.SIGUSR1)
    started.end(75)
    assert [code(tmp_path / name) for name in "ab"] == [75, 75]


def test_a_job_ends_with_all_that_it_forked(tmp_path):
    stages = [forked(tmp_path / name, "wait") for name in "ab"]
    started = Started(tmp_path, stages, make_programs(tmp_path))
    started.wait("a/began", "b/began")
    assert len(list_processes(tmp_path)) == 6, "the job, the process from which all are forked, and two for each stage"
    started.process.kill()
    started.process.communicate()
    wait_until(lambda: not list_processes(tmp_path), "all to end")


@pytest.mark.parametrize(
    ("kind", "before"),
    [("convert", ""), ("evaluate", "raise ImportError\n")],
    ids=["it is light", "none can be forked"],
)
def test_other_stages_are_fresh_processes(tmp_path, kind, before):
    stages = [forked(tmp_path / name, "describe", kind) for name in "ab"]
    environ = make_programs(tmp_path, before)
    module = tmp_path / "overlay" / "gnnscale" / "stages" / f"{kind}.py"
    module.write_text("from gnnscale.stages.programs import run_stage\nrun_stage([])\n")
    Started(tmp_path, stages, environ).end(0)
    assert all(json.loads(read(tmp_path / name, "stdout"))["cwd"] == str(tmp_path / name) for name in "ab")


class Endless:
    """A launcher's process that does not end."""

    def __init__(self):
        self.signals = []

    def poll(self):
        return None

    def send_signal(self, signum):
        self.signals.append(signum)


def test_looks_for_failures_are_rare_and_in_time(tmp_path, monkeypatch):
    """A rank fails in the middle of 90 s, which pass in steps of a tenth of a second."""
    clock, reads = [100.0], []
    monkeypatch.setattr(batch_job.time, "monotonic", lambda: clock[0])
    attempt = batch_job.Attempt(planned(tmp_path), "7", ["n1"], "n1", 1)
    attempt.process, real = Endless(), attempt.read_first_failure
    attempt.read_first_failure = lambda: reads.append(clock[0]) or real()
    ended = {}
    for tick in range(900):
        clock[0] = 100.0 + tick / 10
        if tick == 300:
            (tmp_path / "attempts" / "1" / "failed").write_text("3 1 n2\n")
        attempt.poll()
        for signum in attempt.process.signals:
            ended.setdefault(signum, tick / 10 - 30)
    assert attempt.process.signals == [signal.SIGTERM, signal.SIGKILL]
    assert len(reads) <= 90 / batch_job.SECONDS_BETWEEN_LOOKS + 1
    to_sigkill = batch_job.SECONDS_TO_SIGTERM + batch_job.SECONDS_TO_SIGKILL
    for signum, after in ((signal.SIGTERM, batch_job.SECONDS_TO_SIGTERM), (signal.SIGKILL, to_sigkill)):
        assert after < ended[signum] < after + 2 * batch_job.SECONDS_BETWEEN_LOOKS + 0.2
