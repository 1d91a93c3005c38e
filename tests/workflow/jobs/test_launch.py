"""The script of a job, run by bash with the variables of PBS and a program in the place of a stage.

However the ranks end, exit.json holds what the driver must know. With Slurm: integration/test_slurm.py.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gnnscale.contract import files, places
from gnnscale.contract.results import StageResult
from tests.support import corpus
from tests.support.cluster import PATIENCE
from tests.support.corpus import ROOT
from workflow.config import site_files
from workflow.jobs import launch, outcome
from workflow.jobs.requests import Request

NODE = platform.node()
# A stage that behaves as the file `behave` of its directory says. The real batch_job and rank_wrapper start it.
PROGRAM = f"""#!{sys.executable}
import faulthandler, os, signal, sys, time
if sys.argv[2] == "gnnscale.job.batch_job":
    from gnnscale.job import batch_job
    sys.exit(batch_job.main())
if sys.argv[2] == "gnnscale.job.rank_wrapper" and open("behave").read() == "launcher":
    open("began.0", "a").close()
    time.sleep(600)
if sys.argv[2] == "gnnscale.job.rank_wrapper":
    from gnnscale.job import rank_wrapper
    sys.executable = __file__
    sys.exit(rank_wrapper.main(rank_wrapper.Path(sys.argv[3]), sys.argv[4]))
if sys.argv[2] == "gnnscale.machine.node_check":
    from gnnscale.machine import node_check
    sys.exit(node_check.main(node_check.Path(sys.argv[3]), sys.argv[4]))
assert sys.argv[1:3] == ["-m", "gnnscale.job.stack_dump"] and sys.argv[4].startswith("gnnscale.") and sys.argv[5:] == ["."]
faulthandler.register(signal.SIGUSR2, file=int(sys.argv[3]))
mine = int(os.environ.get("PMI_RANK", 0))
def told(*_):
    time.sleep(0.3 * mine)  # the others take longer to write
    open(f"told.{{mine}}", "a").close()
    sys.exit(75)
behave = open("behave").read().split()
if behave[0] != "deaf":
    signal.signal(signal.SIGUSR1, signal.SIG_IGN if behave[0] == "deaf-to-it" else told)
with open("../order", "a") as file:
    file.write(os.path.basename(os.getcwd()) + " ")
with open(f"began.{{mine}}", "w") as file:
    file.write(os.environ["MASTER_ADDR"] + " " + os.environ["MASTER_PORT"])
if behave[0] == "exit" and mine == int(behave[2]):
    sys.exit(int(behave[1]))
if behave[0] == "killed" and mine == int(behave[1]):
    os.kill(os.getpid(), signal.SIGKILL)
while behave[0] in ("until-told", "deaf-to-it") and not os.path.exists("../go"):
    time.sleep(0.02)
if behave[0] in ("wait", "deaf", "killed", "exit"):
    time.sleep(600)
"""


@pytest.fixture(params=["run", 'it\'s "a" run; $HOME & co'])
def folder(request, tmp_path):
    made = tmp_path / request.param
    made.mkdir()
    return made


class Job:
    """Process of the script, in an allocation as PBS describes one."""

    def __init__(
        self, attempts, settings=("launch.command=none",), python=None, hosts=(NODE,), nodes_each=1, **request
    ):
        site = site_files.merge_layers(
            [
                site_files.layer_from_file(places.SITES / "pbs.yaml", "pbs.yaml"),
                *map(site_files.layer_from_option, settings),
            ]
        )
        self.attempts, self.begin = attempts, time.monotonic()
        place = attempts[0].folder.parent
        program, listed = place / "program", place / "nodes"
        if python is None:
            program.write_text(PROGRAM)
            program.chmod(0o755)
        listed.write_text("".join(f"{host}\n{host}\n" for host in hosts))
        ids = tuple(a.id for a in attempts if a.id not in dict(request.get("evaluations", ())))
        asked = Request(ids, "default", len(hosts), nodes_each, site.ranks_per_node, 1, 3600, 1, 1.0)
        script = place / "script"
        script.write_text(
            launch.render_job_body(asked._replace(**request), attempts, site, python or str(program), ROOT)
        )
        env = os.environ | {"PBS_JOBID": "0123.server", "PBS_NODEFILE": str(listed)}
        self.process = subprocess.Popen(
            ["bash", script],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, *names):
        while not all((a.folder / name).exists() for a in self.attempts for name in names):
            assert time.monotonic() - self.begin < PATIENCE and self.process.poll() is None, self.process.stdout.read()
            time.sleep(0.02)

    def end(self, expected):
        said, _ = self.process.communicate(timeout=PATIENCE)
        assert said == "" and self.process.returncode == expected, said
        return [json.loads((a.folder / "attempts" / "1" / "exit.json").read_text()) for a in self.attempts]


def attempt(folder, behave, name="x", kind="train"):
    folder.mkdir(exist_ok=True)
    (folder / "behave").write_text(behave)
    return launch.StageAttempt(f"{kind}/{name}", kind, folder, 1)


def test_a_stage_that_ends_well(folder):
    began = int(time.time())
    (left,) = Job([attempt(folder, "ok")]).end(0)
    assert began <= left.pop("begin") <= left.pop("end") <= time.time()
    assert left == {
        "code": 0,
        "rank": None,
        "host": "",
        "launcher": 0,
        "job": "0123.server",
        "hosts": [NODE],
        "begun": True,
        "sick": {},
    }
    assert (folder / "began.0").read_text() == "127.0.0.1 10123"
    assert sorted(p.name for p in (folder / "attempts" / "1").iterdir()) == ["exit.json", "stderr", "stdout"]


@pytest.mark.parametrize(("behave", "code"), [("exit 64 0", 64), ("exit 1 0", 1), ("killed 0", 137)])
def test_a_stage_that_fails(tmp_path, behave, code):
    folder = tmp_path / "x"
    folder.mkdir()
    (left,) = Job([attempt(folder, behave)]).end(code)
    assert (left["code"], left["rank"], left["host"], left["launcher"]) == (code, 0, NODE, code)


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM])
def test_a_stage_that_is_told_to_stop(folder, signum):
    job = Job([attempt(folder, "wait")])
    job.wait_for("began.0")
    job.process.send_signal(signum)
    (left,) = job.end(75)
    assert left["code"] == 75 and left["launcher"] == 0 and (folder / "told.0").exists()


def test_a_stage_that_is_told_before_it_listens(folder):
    job = Job([attempt(folder, "deaf")])
    job.wait_for("began.0")
    job.process.send_signal(signal.SIGUSR1)
    assert job.end(75)[0]["code"] == 75


def test_a_launcher_that_passes_nothing_on(folder):
    """The signal ends the launcher, and with it the ranks, which had no time to write: they count as stopped, not failed."""
    job = Job([attempt(folder, "launcher")])
    job.wait_for("began.0")
    job.process.send_signal(signal.SIGUSR1)
    (left,) = job.end(75)
    assert (left["code"], left["rank"], left["launcher"]) == (75, None, 138)


def test_the_whole_group_is_told_at_once(folder):
    """Some schedulers signal every process of a job; a second signal changes nothing."""
    job = Job([attempt(folder, "wait")])
    job.wait_for("began.0")
    os.killpg(job.process.pid, signal.SIGUSR1)
    assert job.end(75)[0]["code"] == 75


@pytest.mark.slow
def test_pbs_says_nothing_before_the_end_so_the_script_does(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    job = Job([attempt(folder, "wait")], settings=("launch.command=none", "scheduler.signal_seconds=118"), seconds=120)
    (left,) = job.end(75)
    assert left["end"] - left["begin"] in range(1, 300), "after two seconds, and not the ten minutes that it would wait"


def test_a_job_of_pbs_with_no_time_before_its_end_is_told_all_the_same(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    job = Job([attempt(folder, "wait")], settings=("launch.command=none", "scheduler.signal_seconds=120"), seconds=120)
    assert job.end(75)[0]["code"] == 75


def test_stages_without_ranks_are_told_of_the_gpus_of_their_node():
    """Nodes without GPUs get no variable, and neither do ranks, whose launcher sets it."""
    for name, queue, slots, expected in (
        ("lumi", "standard-g", 8, ["ROCR_VISIBLE_DEVICES", 8]),
        ("lumi", "standard-g", 0, None),
        ("stampede3", "skx", 8, None),
    ):
        asked = Request(("evaluate/x",), queue, 1, 1, 1, 1, 3600, 1, 1.0, slots=slots)
        text = launch.render_job_body(
            asked, [launch.StageAttempt("evaluate/x", "evaluate", Path("/r/evaluate/x"), 1)], site_files.load(name)
        )
        assert json.loads(text.partition("<<'PLAN'\n")[2].partition("PLAN\n")[0])["gpus"] == expected


def test_a_training_beside_others_has_its_nodes_whole():
    """LUMI names the cores of a rank one by one, so its step must have them all."""
    asked = Request(("train/a", "train/b"), "standard-g", 2, 1, 8, 6, 3600, 1, 1.0)
    one = launch.StageAttempt("train/a", "train", Path("/r/train/a"), 1)
    words = launch.build_rank_command(one, asked, site_files.load("lumi"), "python")
    assert "--nodelist={hosts}" in words and "--exact" not in words


def test_where_modules_are_looked_for():
    site = site_files.load(
        "slurm", ["module_paths=['/soft/my modules', /other]", "modules=[a/1, b]", "setup=['export A=1']"]
    )
    lines = launch.render_environment(Request(("x",), "default", 1, 1, 1, 1, 3600, 1, 1.0), site, ROOT)
    assert lines[:3] == ["module use '/soft/my modules' /other", "module load a/1 b", "export A=1"]
    site = site.model_copy(update={"modules": ()})
    lines = launch.render_environment(Request(("x",), "default", 1, 1, 1, 1, 3600, 1, 1.0), site, ROOT)
    assert not [line for line in lines if line.startswith("module")]


def test_an_attempt_that_was_given_up_does_not_begin(tmp_path):
    folder = tmp_path / "x"
    (folder / "attempts" / "1").mkdir(parents=True)
    (folder / "attempts" / "1" / "closed").touch()
    job = Job([attempt(folder, "ok")])
    assert job.process.wait(timeout=PATIENCE) == 0
    assert not (folder / "began.0").exists() and not (folder / "attempts" / "1" / "exit.json").exists()


def test_a_directory_that_is_no_more(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    mine = attempt(folder, "ok")
    job = Job([mine._replace(folder=tmp_path / "gone", id="train/y")])
    said, _ = job.process.communicate(timeout=PATIENCE)
    assert job.process.returncode == 1 and said.strip() == f"{tmp_path / 'gone'}: no such file or directory"
    assert not (tmp_path / "gone").exists()


def test_several_stages_in_one_job_have_each_their_end(tmp_path):
    attempts = []
    for name, behave in (("a", "ok"), ("b", "exit 64 0"), ("c", "wait")):
        (tmp_path / name).mkdir()
        attempts.append(attempt(tmp_path / name, behave, name))
    job = Job(attempts, hosts=("n1", "n2", "n3"))
    job.wait_for("began.0")
    while not all((tmp_path / name / "attempts" / "1" / "exit.json").exists() for name in "ab"):
        time.sleep(0.02)
    job.process.send_signal(signal.SIGUSR1)
    left = job.end(64)
    assert [each["code"] for each in left] == [0, 64, 75]
    assert [each["hosts"] for each in left] == [["n1"], ["n2"], ["n3"]]
    assert len({(a.folder / "began.0").read_text() for a in attempts}) == 3, "a port of its own for each"


# ------------------------------------------------------------------------------------- some at a time, and one after another
def left_by(attempts):
    return {a.id: json.loads((a.folder / "attempts" / "1" / "exit.json").read_text()) for a in attempts}


def test_stages_take_turns_on_the_cores_of_a_node(tmp_path):
    attempts = [attempt(tmp_path / name, "until-told", name, "convert") for name in "abcde"]
    job = Job(attempts, slots=2)
    while len(list(tmp_path.glob("*/began.0"))) < 2:
        assert job.process.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)  # in which the job looks five times whether there is room for another
    assert len(list(tmp_path.glob("*/began.0"))) == 2
    (tmp_path / "go").touch()
    assert {each["code"] for each in job.end(0)} == {0}
    assert sorted((tmp_path / "order").read_text().split()) == list("abcde")


def test_whose_turn_never_came_is_told_so(tmp_path):
    attempts = [attempt(tmp_path / name, "wait", name, "convert") for name in "abc"]
    job = Job(attempts, slots=1)
    while not (tmp_path / "a" / "began.0").exists():
        time.sleep(0.02)
    job.process.send_signal(signal.SIGUSR1)
    left = job.end(75)
    assert [(each["code"], each["begun"]) for each in left] == [(75, True), (75, False), (75, False)]
    assert (tmp_path / "order").read_text() == "a "


def test_an_evaluation_follows_its_training(tmp_path):
    """Each evaluation runs on the first node of its training; not if that failed, was stopped, or was closed."""
    behaves = {"a": "ok", "b": "exit 64 0", "c": "wait", "d": "ok"}
    trained = [attempt(tmp_path / name, behave, name) for name, behave in behaves.items()]
    after = [attempt(tmp_path / f"of-{name}", "ok", name, "evaluate") for name in behaves]
    (tmp_path / "d" / "attempts" / "1").mkdir(parents=True)
    (tmp_path / "d" / "attempts" / "1" / "closed").touch()
    pairs = tuple((f"evaluate/{name}", f"train/{name}") for name in behaves)
    job = Job([*trained, *after], evaluations=pairs, hosts=("n1", "n2", "n3", "n4"))
    job.attempts = [*trained[:2], after[0]]
    left = [f"{name}/attempts/1/exit.json" for name in ("b", "of-a")]
    while not all((tmp_path / name).exists() for name in (*left, "c/began.0")):
        assert job.process.poll() is None
        time.sleep(0.02)
    job.process.send_signal(signal.SIGUSR1)
    assert [each["code"] for each in job.end(64)] == [0, 64, 0]
    order = (tmp_path / "order").read_text().split()
    assert sorted(order) == ["a", "b", "c", "of-a"] and order.index("of-a") > order.index("a")
    assert left_by(after[:1])["evaluate/a"]["hosts"] == ["n1"]
    assert not list(tmp_path.glob("of-[bcd]/attempts/*/exit.json"))


@pytest.mark.slow
def test_one_that_is_told_before_its_evaluation_began(tmp_path):
    """The training ends well; its evaluation is for another job."""
    trained, after = attempt(tmp_path / "a", "deaf-to-it", "a"), attempt(tmp_path / "of-a", "ok", "a", "evaluate")
    job = Job([trained, after], evaluations=(("evaluate/a", "train/a"),))
    while not (tmp_path / "a" / "began.0").exists():
        time.sleep(0.02)
    job.process.send_signal(signal.SIGUSR1)
    (tmp_path / "go").touch()
    first, second = job.end(75)
    assert (first["code"], second["code"], second["begun"]) == (0, 75, False)


def test_a_stage_tells_where_it_is(folder):
    """A file in the attempt's directory makes the stage print its stack, and so does a signal; the stage continues."""
    job = Job([attempt(folder, "until-told")])
    job.wait_for("began.0")
    said = folder / "attempts" / "1" / "stderr"
    ask = (folder / "attempts" / "1" / "SIGUSR2").touch
    for times, tell in ((1, ask), (2, lambda: job.process.send_signal(signal.SIGUSR2))):
        tell()
        while said.read_text().count("Current thread") < times:
            assert job.process.poll() is None
            time.sleep(0.02)
    (folder.parent / "go").touch()
    assert job.end(0)[0]["code"] == 0
    lines = said.read_text().splitlines()
    assert all(line.startswith(f"[rank 0 on {NODE}] ") for line in lines)
    ((label, frames),) = outcome.parse_stacks(said.read_text()).items()
    assert label == f"rank 0 on {NODE}" and frames[0].startswith("<module> (") and "program:" in frames[0]


def test_a_node_that_is_not_fit_is_named(tmp_path):
    """The node has no GPU driver, so no stage begins there."""
    gpus = "node.gpus={count: 1, vendor: nvidia, model: none, memory_gb: 1, peak_tflops: {fp32: 1}}"
    settings = ("launch.command=none", gpus)
    trained, after = attempt(tmp_path / "a", "ok", "a"), attempt(tmp_path / "of-a", "ok", "a", "evaluate")
    job = Job([trained, after], settings, evaluations=(("evaluate/a", "train/a"),))
    job.attempts = [trained]
    (left,) = job.end(76)
    assert left["code"] == 76 and not left["begun"] and left["sick"][NODE].startswith("no driver: libcuda")
    assert not (tmp_path / "order").exists() and not list(tmp_path.glob("of-a/attempts/*/exit.json"))


@pytest.mark.slow
def test_a_real_stage(tmp_path, converted):
    """A real training runs through the same script."""
    made = corpus.make_stage_directory(tmp_path, "train/x", corpus.TINY, converted)
    (left,) = Job([launch.StageAttempt("train/x", "train", made, 1)], python=sys.executable).end(0)
    assert left["code"] == 0, (made / "attempts" / "1" / "stderr").read_text()
    assert files.read_model(made / "result.json", StageResult).id == "train/x"


@pytest.mark.slow
def test_real_stages_that_share_a_job(tmp_path, converted):
    """They are forked from one process, and leave what one that runs alone leaves."""
    made = [corpus.make_stage_directory(tmp_path, f"train/{name}", corpus.TINY, converted) for name in ("x", "y")]
    attempts = [launch.StageAttempt(f"train/{folder.name}", "train", folder, 1) for folder in made]
    left = Job(attempts, python=sys.executable, hosts=(NODE, NODE), slots=2).end(0)
    assert [each["code"] for each in left] == [0, 0]
    alone = corpus.make_stage_directory(tmp_path, "train/alone", corpus.TINY, converted)
    assert corpus.run_stage(alone).returncode == 0
    results = [files.read_model(folder / "result.json", StageResult) for folder in (*made, alone)]
    assert len({each.digest for each in results}) == 1
    forked = [each.start_cpu_seconds < results[-1].start_cpu_seconds for each in results[:2]]
    assert any(forked), "the libraries were imported once"


# ------------------------------------------------------------------------------- ranks, by a real mpiexec where one is
MPIEXEC = shutil.which("mpiexec") or shutil.which("mpiexec", path=Path(sys.executable).parent)
mpi = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec here")


@pytest.fixture
def two(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f"{Path(MPIEXEC).parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "x").mkdir()
    return lambda behave: Job([attempt(tmp_path / "x", behave)], settings=("launch.ranks_per_node=2",))


@mpi
def test_two_ranks_end_well(two):
    job = two("ok")
    assert job.end(0)[0]["code"] == 0
    assert (job.attempts[0].folder / "began.1").exists()


@pytest.mark.slow
@mpi
def test_one_of_two_ranks_is_killed_and_the_other_is_ended(two):
    (left,) = two("killed 1").end(137)
    assert (left["code"], left["rank"]) == (137, 1)
    assert left["end"] - left["begin"] < 300, "and not after the ten minutes that the other would wait"


@mpi
def test_two_ranks_are_told_and_both_may_write(two):
    job = two("wait")
    job.wait_for("began.0", "began.1")
    job.process.send_signal(signal.SIGUSR1)
    (left,) = job.end(75)
    assert left["launcher"] == 0, "nobody was killed"
    assert all((job.attempts[0].folder / f"told.{rank}").exists() for rank in (0, 1))
