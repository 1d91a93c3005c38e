"""Mistakes at the command line: one line, exit code 2, the nearest known name, no traceback."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from gnnscale.contract import files
from tests.support.corpus import ROOT
from workflow.cli.arguments import build_parser
from workflow.cli.commands import named_run_directory
from workflow.cli.drive import report_error
from workflow.cli.invocation import Invocation
from workflow.run_directory.journal import WITHDRAWN_MARKER, Journal
from workflow.run_directory.lease import Lease
from workflow.run_directory.status import PlanFile, RecordedStage

STUDY = """title: t
data: [{name: a, dataset: generated, options: {source: bulk, structures: 10}}]
sweeps: [{name: s}]
"""


def call(*words, cwd=ROOT):
    command = [sys.executable, str(ROOT / "workflow" / "run.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "--study", "defalt"], "did you mean 'default'?"),
        (["plan", "--site", "locl"], "did you mean 'local'?"),
        (["plan", "--study", "nowhere/x.yaml"], "no such file or directory"),
        (["status", "--root", "/nonexistent"], "no study has been run here"),
        (["report", "--root", "/nonexistent"], "not made yet"),
        (["explain", "train/w56-d3-n2601"], "did you mean 'train/w56-d3-n2600'?"),
        (["sites", "show", "perlmuter"], "no site 'perlmuter'"),
        (["clean", "--root", "/nonexistent", "--all", "--yes"], "nothing is removed"),
        (["plan", "--root", "/dev/null/x"], "not a directory"),
        (["plna"], "gnnscale: no verb 'plna'; did you mean 'plan'?"),
        (["plan", "--jsn"], "unrecognized arguments: --jsn"),
        (["--until", "evaluat"], "argument --until: found 'evaluat'; did you mean 'evaluate'?"),
        (["--until", "levers"], "argument --until: found 'levers'; it is called 'memory_levers' now"),
        (["--until", "shards"], "found 'shards'; it is called 'convert_part' now"),
        (["sites", "lst"], "found 'lst'; did you mean 'list'?"),
    ],
)
def test_wrong_words(words, message):
    done = call(*words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2, "the mistake, and what to do"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "source: bulk",
            "source: bluk",
            "source: found 'bluk', expected one of organic, small, adsorbate, oxide, bulk; did you mean 'bulk'?",
        ),
        ("structures: 10", "structurs: 10", "unknown name 'structurs'; did you mean 'structures'?"),
        (
            "title: t",
            "title: t\ntrain: {model: {kind: egnnn}}",
            "mine.yaml:2: train.model.kind: found 'egnnn', expected one of egnn, moments; did you mean 'egnn'?",
        ),
        (
            "{name: s}",
            "{name: s, over: {model.widht: [1]}}",
            "mine.yaml:3: sweep 's': no setting is called 'model.widht'; did you mean 'model.width'?",
        ),
        (
            "{name: s}",
            "{name: s, over: {model.width: []}}",
            "mine.yaml:3: sweeps.0.over.model.width: found []: list should have at least 1 item",
        ),
        ("name: a", "name: ../a", "data.0.name: found '../a'"),
        (
            "title: t",
            "title: t\naudit: {surely: 8}",
            "mine.yaml:2: unknown name 'surely'; it is called 'quarantine_above' now",
        ),
        (
            "title: t",
            "title: t\naudit: {outlier: 4}",
            "mine.yaml:2: unknown name 'outlier'; it is called 'report_above' now",
        ),
    ],
)
def test_wrong_studies(tmp_path, old, new, message):
    path = tmp_path / "mine.yaml"
    path.write_text(STUDY.replace(old, new))
    done = call("plan", "--study", str(path), "--root", str(tmp_path / "run"))
    assert done.returncode == 2, done.stdout
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists(), "a plan writes nothing"


@pytest.mark.parametrize("verb", ["plan", "run", "status", "cancel", "clean"])
def test_a_run_directory_of_an_earlier_version(tmp_path, verb):
    """Refused, and not touched."""
    plan = json.dumps({"format": 1, "study": "smoke", "site": "local", "stages": []})
    (tmp_path / "plan.json").write_text(plan)
    done = call(verb, "--study", "smoke", "--root", str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert f"{tmp_path}: made by another version of gnnscale (format 1; this one writes 2)" in done.stderr
    assert len(done.stderr.splitlines()) == 2 and "--root" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert (tmp_path / "plan.json").read_text() == plan


def test_a_directory_that_cannot_be_made():
    done = call("run", "--study", "smoke", "--root", "/dev/null/x")
    assert done.returncode == 2
    assert "/dev/null" in done.stderr and "Traceback" not in done.stderr


def test_a_reader_who_has_had_enough():
    done = subprocess.run(
        f"{sys.executable} workflow/run.py plan --study paper | head -1",
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stderr == ""


def test_every_site_is_valid():
    done = call("sites", "validate")
    assert done.returncode == 0 and "sites/local.yaml: valid" in done.stdout


def cpu_of_children() -> float:
    """Sum the seconds of the processor that all processes took which this one started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_plan_of_a_large_study_is_quick():
    """The promise is half a second; fifty times that, of the processor, would be a mistake and not noise."""
    before = cpu_of_children()
    assert call("plan", "--study", "paper").returncode == 0
    assert cpu_of_children() - before < 25


def test_what_cannot_fit_is_refused_before_anything_starts(tmp_path):
    path = tmp_path / "huge.yaml"
    path.write_text(STUDY.replace("{name: s}", "{name: s, over: {model.width: [200000]}}"))
    done = call("run", "--study", str(path), "--root", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "1 training(s) do not fit" in done.stderr and "weights, gradients and moments" in done.stderr
    assert not (tmp_path / "run" / "data").exists()


# ------------------------------------------------------------------------------------------------- what to type next
def test_what_to_type_next_is_what_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my studies").mkdir()
    (tmp_path / "my studies" / "tiny-0.1.yaml").write_text(STUDY)
    words = [
        "--study",
        "my studies/tiny-0.1.yaml",
        "--root",
        "a b",
        "--set",
        "env.X=a b",
        "--until",
        "train",
        "--max-node-hours",
        "1234567.5",
    ]
    asked = Invocation(build_parser().parse_args(words))
    said = f"--site local --study 'my studies/tiny-0.1.yaml' --root '{tmp_path}/a b' --set 'env.X=a b'"
    assert asked.command() == f"python workflow/run.py {said} --until train --max-node-hours 1234567.5"
    assert asked.command("cancel") == f"python workflow/run.py cancel {said}", "which take neither"
    assert Invocation(build_parser().parse_args([])).command() == "python workflow/run.py --site local"


@pytest.mark.parametrize("typed", ["mine-0.1", "somewhere/mine-0.1.yaml"])
def test_the_run_directory_has_the_whole_name(typed):
    assert named_run_directory(build_parser().parse_args(["status", "--study", typed])) == ROOT / "runs" / "mine-0.1"


# ------------------------------------------------------------------------------------------------ ends of other kinds
LONG = STUDY.replace("structures: 10", "structures: 100000")


def begun(tmp_path, text=LONG):
    """Start a driver with one long conversion, and return it once it has printed where its results will be."""
    (tmp_path / "long.yaml").write_text(text)
    command = [
        sys.executable,
        str(ROOT / "workflow" / "run.py"),
        "--study",
        str(tmp_path / "long.yaml"),
        "--root",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline()
    return process


def test_a_reader_who_has_had_enough_of_a_run(tmp_path):
    """`run | head`: it stops as by Ctrl-C, and does not say that it is done."""
    process = begun(tmp_path)
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(timeout=120) == 75 and said == ""
    assert not list((tmp_path / "run").rglob("result.json"))


@pytest.mark.slow
def test_a_driver_that_was_taken_for_dead_stops(tmp_path):
    process, path = begun(tmp_path), tmp_path / "run" / "driver.lease"
    while "running" not in process.stdout.readline():
        assert process.poll() is None
    other = {"host": "elsewhere", "pid": 7, "since": 1e9}
    path.write_text(json.dumps(other))
    out, said = process.communicate(timeout=120)
    assert process.returncode == 2 and "another driver has taken over, on host elsewhere" in said
    assert "Traceback" not in said and "to continue: python workflow/run.py" in out
    assert json.loads(path.read_text()) == other


@pytest.fixture
def planned(tmp_path):
    """Make a run directory with one training, as if it had been started."""
    stage = RecordedStage(
        id="train/a", kind="train", key="0123abcd", folder="train/a-0123abcd", needs=(), core_seconds=1.0
    )
    files.write_model(tmp_path / "plan.json", PlanFile(study="s", site="local", stages=(stage,)))
    (tmp_path / stage.folder / "attempts" / "1").mkdir(parents=True)
    return tmp_path


def heard() -> None:
    """Whoever runs the tests in the background has its children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_while_somebody_watches(planned):
    holder = Lease(planned)
    holder.take()
    command = [sys.executable, str(ROOT / "workflow" / "run.py"), "status", "--watch", "--root", str(planned)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=heard,
    )
    assert "\033" not in process.stdout.readline(), "no terminal, nothing is written over"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    holder.release()
    assert process.returncode == 130 and said == ""


@pytest.mark.slow
def test_nothing_is_removed_under_a_job(planned):
    log = Journal(planned / "events.jsonl")
    log.note("intend", name="gs1", root=str(planned), site="slurm", stages={"train/a": ("train/a-0123abcd", 1)})
    log.note("submit", name="gs1", job="1234")
    for words in (["--yes"], ["--all", "--yes"]):
        done = call("clean", "--study", "smoke", "--root", str(planned), *words)
        assert done.returncode == 2 and "1 job(s) may still be running here (1234)" in done.stderr
        assert f"run.py cancel --site slurm --study smoke --root {planned}" in done.stderr
        assert (planned / "train" / "a-0123abcd").exists() and (planned / "events.jsonl").exists()
    assert "would remove" in call("clean", "--study", "smoke", "--root", str(planned)).stdout
    (planned / "train" / "a-0123abcd" / "attempts" / "1" / WITHDRAWN_MARKER).touch()  # as `cancel` leaves it
    assert call("clean", "--study", "smoke", "--root", str(planned), "--yes").returncode == 0
    assert not (planned / "train" / "a-0123abcd").exists()


def test_a_terminal_without_the_letters(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("PYTHONUTF8", "0")
    (tmp_path / "mine.yaml").write_text(STUDY.replace("title: t", "title: −5 %"), encoding="utf-8")
    done = call("plan", "--study", str(tmp_path / "mine.yaml"), "--root", str(tmp_path / "run"))
    assert done.returncode == 0 and "mine: ?5 %" in done.stdout


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "/x/y"), "gnnscale: /x/y: no such file or directory\n"),
        (OSError(28, "No space left on device"), "gnnscale: no space left on device\n"),
        (OSError("the library's own words"), "gnnscale: the library's own words\n"),
        (OSError(), "gnnscale: OSError\n"),
        (OSError(5, None), "gnnscale: input/output error\n"),
        (OSError(9, "Bad file descriptor", 7), "gnnscale: 7: bad file descriptor\n"),
    ],
)
def test_errors_of_the_system_are_reported_in_a_line(capsys, error, said):
    assert report_error(error) == 2
    assert capsys.readouterr().err == said


def test_a_bug_is_reported_with_its_traceback(capsys):
    try:
        raise KeyError("a mistake of ours")
    except KeyError as error:
        assert report_error(error) == 1
    assert "Traceback" in capsys.readouterr().err
