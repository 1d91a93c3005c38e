"""The doctor's findings: each subject has a line, and each bad one says what to do."""

import json
import os
import sys
import termios
import time

import pytest

from gnnscale.contract.errors import UserError
from gnnscale.machine.native_build import NativeBuild
from tests.workflow.cli.test_commands import call
from workflow.cli import findings_output, plan_output
from workflow.config import site_files
from workflow.doctor import diagnosis, examine
from workflow.doctor.diagnosis import ChosenSite
from workflow.doctor.trial_job import RankReport, SeenDevice, TrialResult
from workflow.doctor.trial_job import run_in_queue as in_a_queue
from workflow.scheduler.interface import JobStatus, SchedulerUnreachable, Snapshot
from workflow.scheduler.registry import SCHEDULERS
from workflow.scheduler.slurm import SlurmScheduler

IMAGE = "7d155055" * 8  # an id
GPUS = "node.gpus={count: 2, vendor: nvidia, model: A100-40GB, memory_gb: 40, peak_tflops: {fp32: 19.5}}"
A100 = SeenDevice(name="NVIDIA A100-SXM4-40GB", memory=42_000_000_000)
TOKEN = "01234567"


def at(*settings, name="slurm"):
    return ChosenSite(name, list(settings), site_files.load(name, list(settings)))


def rank(number=0, **said):
    """As it should be: two on each of the nodes n1, n2, ..., each with a GPU of its own."""
    usual = {
        "step": "done",
        "token": TOKEN,
        "host": f"n{1 + number // 2}",
        "arch": examine.platform.machine(),
        "rank": number,
        "local_rank": number % 2,
        "size": 4,
        "launcher": "srun",
        "python": sys.executable,
        "began": 0.0,
        "cores": 8,
        "memory": 64_000_000_000,
        "temporary": "/tmp",
        "interfaces": {"lo": "127.0.0.1", "hsn0": f"10.0.0.{1 + number // 2}", "eth0": ""},
        "packages": {"torch": "2.13.0", "deepspeed": "0.19.8", "adios2": "2.12"},
        "accelerator": "cuda",
        "backend": "nccl",
        "devices": (A100, A100),
        "device": f"id-{number % 2}",
        "met": ("n1", "n1", "n2", "n2"),
        "sum_is_right": True,
        "seconds": 0.01 + 0.001 * number,
        "mebibytes": 64,
        "native": "avx512",
    }
    return RankReport(**usual | said)


def trial(folder, reports=None, **said):
    reports = tuple(rank(k) for k in range(4)) if reports is None else tuple(reports)
    usual = {
        "queue": "default",
        "job": "7",
        "nodes": 2,
        "ranks": 4,
        "folder": folder,
        "token": TOKEN,
        "waited": 12.0,
        "started": True,
        "status": JobStatus("7", "gnnscale-doctor", "COMPLETED", nodes="n[1-2]"),
        "reports": reports,
        "exit": None,
        "output_tail": (),
    }
    return TrialResult(**usual | said)


def found(where, done):
    return {each.what: each for each in diagnosis.judge(where, done)}


def test_all_is_well(tmp_path):
    said = found(at(GPUS, "launch.interface=hsn0", "launch.threads_per_rank=8"), trial(tmp_path))
    assert {each.state for each in said.values()} == {"ok"}
    assert set(said) == {
        "job",
        "shared files",
        "Python",
        "interface",
        "cores",
        "memory",
        "GPUs",
        "clock of nodes",
        "collective",
    }
    # the slowest rank took 13 ms; in a ring of four, each sends 3/2 of 64 MiB
    assert said["collective"].said == "nccl, 4 ranks on 2 nodes: 64 MiB in 13.0 ms, 7.74 GB/s each"


@pytest.mark.parametrize(
    ("changed", "what", "words"),
    [
        ({"token": "other"}, "shared files", "n2 sees another"),
        ({"fault": "cannot lock a file: no locks available"}, "shared files", "n2: cannot lock a file"),
        ({"arch": "riscv"}, "nodes", "n2 is riscv"),
        ({"interfaces": {"lo": "127.0.0.1", "ib0": "10.1.0.2"}}, "interface", "n2 has no hsn0; it has ib0"),
        ({"interfaces": {"hsn0": ""}}, "interface", "hsn0 of n2 has no IPv4 address"),
        ({"cores": 1}, "cores", "starts 8 threads on 1 core(s)"),
        ({"clock_lead": 30.0}, "clock of nodes", "n2 is +30 s"),
        ({"temporary": "/" + "x" * 90}, "temporary files", "has 91 characters"),
        ({"packages": {"torch": "2.13.0", "deepspeed": "", "adios2": "2.12"}}, "Python", "has no deepspeed"),
        ({"packages": {"torch": "2.12.0", "deepspeed": "0.19.8", "adios2": "2.12"}}, "Python", "different versions"),
        (
            {"devices": (), "accelerator": "cpu", "device": ""},
            "GPUs",
            "n2 shows none, the site's file has 2 x A100-40GB",
        ),
        ({"devices": (A100,), "device": "id-0"}, "GPUs", "n2 gives its ranks 1"),
        ({"device": "id-0"}, "GPUs", "two ranks on n2 have the same one"),
        (
            {"devices": (SeenDevice(name="AMD Instinct MI250X", memory=A100.memory),) * 2},
            "GPUs",
            "n2 has AMD Instinct MI250X",
        ),
        ({"devices": (SeenDevice(name="NVIDIA A100", memory=20_000_000_000),) * 2}, "GPUs", "of n2 has 20 GB"),
        ({"accelerator": "xpu"}, "GPUs", "the site's file has nvidia"),
        ({"sum_is_right": False}, "collective", "the sum over 4 ranks is wrong"),
        (
            {"step": "meet", "error": "RuntimeError: no route"},
            "collective",
            "ended while the ranks connected: RuntimeError: no route",
        ),
        ({"size": 1, "launcher": "none"}, "collective", "each believes it is one of 1 (launcher: none)"),
    ],
)
def test_each_thing_that_is_wrong_on_a_node(tmp_path, changed, what, words):
    """On the second node alone."""
    reports = [rank(0), rank(1), rank(2, **changed), rank(3, **changed)]
    said = found(at(GPUS, "launch.interface=hsn0", "launch.threads_per_rank=8"), trial(tmp_path, reports))
    assert said[what].state == "bad" and words in said[what].said and said[what].fix
    assert {name for name, each in said.items() if each.state == "bad"} <= {what, "job"}


def test_modules_that_are_not_loaded(tmp_path):
    reports = [rank(k, modules=("PrgEnv-gnu/8.7.0", "rocm/7.1.1")) for k in range(4)]
    where = at("modules=[PrgEnv-gnu/8.7.0, rocm, cpe]", GPUS)
    assert found(where, trial(tmp_path, reports))["modules"].said == "n1: cpe not loaded"
    inside = [rank(k, image="1234") for k in range(4)]
    assert found(where, trial(tmp_path, inside))["modules"].state == "not checked"


@pytest.mark.parametrize(
    ("image", "state", "words"),
    [(IMAGE, "ok", IMAGE[:12]), ("other", "bad", "runs in image other"), ("", "bad", "outside any image")],
)
def test_a_node_with_another_image(tmp_path, image, state, words):
    where = at(GPUS, "container.runtime=apptainer", "container.use=true", f"container.digest={IMAGE}")
    reports = [rank(k, image=IMAGE) for k in range(3)] + [rank(3, image=image)]
    said = found(where, trial(tmp_path, reports))["image"]
    assert said.state == state and words in said.said


@pytest.mark.parametrize(
    ("said", "what", "state", "words"),
    [
        ({"reports": ()}, "shared files", "bad", "ended on n[1-2] (completed) and wrote nothing"),
        (
            {"reports": (), "output_tail": ("python: No such file or directory",)},
            "job",
            "bad",
            "started no rank: python: No such file",
        ),
        (
            {"started": False, "status": JobStatus("7", "d", "PENDING", "Priority")},
            "compute nodes",
            "not checked",
            "(Priority)",
        ),
        (
            {"started": False, "status": JobStatus("7", "d", "PENDING", "PartitionTimeLimit", is_hopeless=True)},
            "job",
            "bad",
            "would never start",
        ),
        ({"fault": "sbatch refuses the job", "hint": "mend it"}, "job", "bad", "sbatch refuses"),
    ],
)
def test_a_job_that_reported_nothing(tmp_path, said, what, state, words):
    (first, *more) = diagnosis.judge(at(), trial(tmp_path, **said))
    assert (first.what, first.state) == (what, state) and words in first.said and first.fix and not more


def test_a_job_that_ran_unseen(tmp_path):
    """A run could not follow its jobs, however well this one went."""
    said = found(at(GPUS), trial(tmp_path, was_listed=False, status=None))
    assert said["job"].state == "ok" and said["scheduler"].state == "bad" and said["scheduler"].fix


@pytest.mark.parametrize(
    "line",
    [
        "Host key verification failed.",
        "ssh: connect to host n2 port 22: Connection refused",
        "u@n2: Permission denied (publickey,gssapi-keyex).",
        "[mpiexec@n1] HYDU_create_process: execvp error on file /usr/bin/ssh (No such file or directory)",
    ],
)
@pytest.mark.parametrize("started", [0, 2])
def test_a_launcher_that_needs_ssh(tmp_path, line, started):
    """The last line is another one, of the launcher that gives up."""
    settings = ["queues.default.partition=workq"]
    where = diagnosis.ChosenSite("pbs", settings, site_files.load("pbs", settings))
    tail = (line, "[mpiexec@n1] main: process manager error waiting for completion")
    (first, *more) = diagnosis.judge(where, trial(tmp_path, [rank(k) for k in range(started)], output_tail=tail))
    assert line in first.said and "pbs_tmrsh" in first.fix and "sites/pbs.yaml" in first.fix and not more


@pytest.mark.parametrize(
    ("here", "there", "state"), [(25.0, 24.0, "ok"), (25.0, 0.0, "bad"), (0.0, -25.0, "bad"), (-9.0, -9.0, "ok")]
)
def test_clocks_are_compared_with_each_other_and_not_with_the_file_server(tmp_path, here, there, state):
    reports = [rank(k, clock_lead=there) for k in range(4)]
    assert found(at(GPUS), trial(tmp_path, reports, clock_lead=here))["clock of nodes"].state == state


@pytest.mark.parametrize(("given", "state"), [(64, "ok"), (60, "ok"), (20, "bad")])
def test_a_job_that_gets_less_memory_than_plans_count_on(tmp_path, given, state):
    reports = [rank(k, memory=given * 10**9, devices=(), accelerator="cpu") for k in range(4)]
    said = found(at("node.memory_gb=64", "launch.ranks_per_node=2"), trial(tmp_path, reports))["memory"]
    assert said.state == state and ("plans assume 64.0" in said.said) == (state == "bad")


def test_fewer_ranks_than_asked_for(tmp_path):
    said = found(
        at(GPUS),
        trial(
            tmp_path,
            [
                rank(0),
                rank(1),
                rank(2, step="meet"),
            ],
        ),
    )
    assert "3 of 4 ranks started, 2 finished" in said["job"].said and "collective" not in said


@pytest.mark.parametrize(
    ("model", "name", "same"),
    [
        ("A100-40GB", "NVIDIA A100-SXM4-40GB", True),
        ("GH200-96GB", "NVIDIA GH200 120GB", True),
        ("MI250X die", "AMD Instinct MI250X", True),
        ("Max 1550 tile", "Intel(R) Data Center GPU Max 1550", True),
        ("H100-80GB", "NVIDIA A100-SXM4-80GB", False),
        ("whatever", "NVIDIA A100", True),
    ],
)
def test_names_of_gpus(model, name, same):
    assert diagnosis.is_same_gpu(model, name) == same


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("/lustre/x 1234567 0 20000000000 - 1000 0 2000000 -", "ok"),
        ("/lustre/x 19999999999* 0 20000000000 6d 1000 0 2000000 -", "bad"),
        ("/lustre/x 1234567 0 20000000000 - 1999999 0 2000000 -", "bad"),
        ("/lustre/x 1234567 0 0 - 1000 0 0 -", "ok"),
        ("no such thing", "not checked"),
    ],
)
def test_quota_of_a_lustre(said, state):
    assert examine.judge_lustre_quota(said).state == state


# ------------------------------------------------------------------------------------------------- the command line
def test_what_can_be_said_here_without_a_job(tmp_path):
    done = call("doctor", "--no-job", "--root", str(tmp_path / "run"))
    assert done.returncode == 0 and not (tmp_path / "run").exists(), "it leaves nothing behind"
    lines = done.stdout.splitlines()
    assert lines[0] == "local: this machine" and lines[-1].endswith("1 not checked")
    assert len({line.index(" ok ") for line in lines if " ok " in line}) == 1, "in columns"
    found = json.loads(call("doctor", "--no-job", "--json", "--root", str(tmp_path / "run")).stdout)
    assert found["ready"] and [f["what"] for f in found["findings"]][:2] == ["host", "architecture"]


NOT_COMPILED = {"native": "", "native_reason": "it was not compiled", "native_hint": "type: pip install -e ."}
SWITCHED_OFF = {"native": "", "native_reason": "it is switched off by GNNSCALE_NATIVE=0"}


@pytest.mark.parametrize(
    ("settings", "changed", "state", "words", "fix"),
    [
        ((), {}, "ok", "for avx512", ""),
        ((), {"native": "avx2"}, "ok", "for avx512", ""),
        ((), NOT_COMPILED, "bad", "n2: it was not compiled; PyTorch trains instead, several times slower", "type: pip"),
        ((), SWITCHED_OFF, "ok", "for avx512", ""),
        (
            ("container.use=true", "container.image=/x.sif"),
            NOT_COMPILED,
            "bad",
            "n2: it was not compiled; ",
            "image build",
        ),
    ],
)
def test_the_native_library_of_the_nodes_is_told_in_a_line(tmp_path, settings, changed, state, words, fix):
    said = found(at(*settings), trial(tmp_path, [rank(0), rank(1), rank(2, **changed), rank(3)]))["native library"]
    assert said.state == state and said.said.startswith(words) and fix in said.fix
    assert "native library" not in found(at(GPUS), trial(tmp_path)), "GPUs do without"


def test_the_native_library_of_this_machine_is_told_without_a_job(monkeypatch, tmp_path):
    """And a study says on its first screen that it is missing; where somebody has switched it off, it says nothing."""
    command = ("--root", str(tmp_path / "run"))
    monkeypatch.setenv("GNNSCALE_NATIVE", "0")
    assert "native library   ok           it is switched off by " in call("doctor", "--no-job", *command).stdout
    assert "native library" not in call("plan", "--study", "smoke", *command).stdout
    monkeypatch.setenv("GNNSCALE_NATIVE", "mmx")
    done = call("doctor", "--no-job", *command)
    assert done.returncode == 1 and "bad          GNNSCALE_NATIVE=mmx: no such instruction set\n" in done.stdout
    assert call("plan", "--study", "smoke", *command).stderr.startswith("gnnscale: GNNSCALE_NATIVE=mmx: no such")
    monkeypatch.delenv("GNNSCALE_NATIVE")
    monkeypatch.setattr(examine, "open_fastest", lambda: NativeBuild(None, reason="it is gone", hint="type: this"))
    finding = examine.examine_native_library()
    assert finding == (
        "native library",
        "bad",
        "it is gone; PyTorch trains instead, several times slower",
        "type: this",
    )


def test_a_study_warns_where_the_native_library_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(plan_output, "open_fastest", lambda: NativeBuild(None, reason="it is gone", hint="type: this"))
    plan_output.print_native_warning(site_files.load("local"))
    expected = "warning: trainings will be several times slower without the native library: it is gone; type: this\n"
    assert capsys.readouterr().out == expected
    for other in (site_files.load("slurm"), site_files.load("local", [GPUS])):
        plan_output.print_native_warning(other)
    assert capsys.readouterr().out == "", "the doctor asks their nodes"


def test_an_image_that_is_not_there(tmp_path):
    done = call(
        "doctor", "--root", str(tmp_path), "--set", "container.use=true", "--set", f"container.image={tmp_path}/x.sif"
    )
    assert done.returncode == 1 and "x.sif" in done.stdout and "no job until this is fixed: container" in done.stdout


def test_on_the_wrong_machine_no_job_is_tried(tmp_path):
    done = call("doctor", "--site", "vista", "--root", str(tmp_path))
    assert done.returncode == 1
    assert "sites/vista.yaml:4" in done.stdout and "sites/vista.yaml:5" in done.stdout
    assert "no job until this is fixed: host" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    done = call("doctor", "--root", str(tmp_path / "file" / "run"))
    assert (
        done.returncode == 1
        and "choose another one: --root DIR" in done.stdout
        and "no job until this is fixed: run directory" in done.stdout
    )


def test_a_study_that_does_not_fit(tmp_path):
    done = call("doctor", "--no-job", "--study", "paper", "--root", str(tmp_path / "run"))
    assert done.returncode == 1 and "study" in done.stdout.splitlines()[1] and "bad" in done.stdout.splitlines()[1]


def test_a_long_place_for_temporary_files(tmp_path, monkeypatch):
    """A socket in it would have too long a name."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    done = call("doctor", "--no-job", "--root", str(tmp_path / "run"))
    assert done.returncode == 1 and "temporary files  bad" in done.stdout and "-> export TMPDIR=/tmp" in done.stdout
    planned = call("plan", "--study", "smoke", "--root", str(tmp_path / "run"))
    assert "warning:" in planned.stdout and "export TMPDIR=/tmp" in planned.stdout
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert "warning" not in call("plan", "--study", "smoke", "--root", str(tmp_path / "run")).stdout


def test_when_a_job_would_begin():
    now = time.time()
    day, hour = time.strftime("%Y-%m-%d|%H:%M", time.localtime(now)).split("|")
    assert examine.format_start(day, hour) == "now"
    assert examine.format_start("2999-01-01", "12:00") == "on 2999-01-01"


# ------------------------------------------------------------------------------------------- its job, and who waits for it
def test_what_is_waited_for_is_told_where_only_standard_output_is_a_pipe(monkeypatch):
    """`doctor | tee log`: it is the terminal of standard error whose width counts."""
    monkeypatch.setenv("TERM", "xterm")
    seen, terminal = os.openpty()
    with open(terminal, "w") as stream:
        termios.tcsetwinsize(terminal, (24, 40))
        findings_output.progress_writer(stream)("job 7 " + 100 * "x")
        assert os.read(seen, 1000).decode() == "\r\033[K  job 7 " + 31 * "x"
    os.close(seen)


class Stand(SlurmScheduler):
    """A stand-in for the scheduler, which records what is cancelled and returns a given status."""

    def __init__(self, monkeypatch, says, cancels=True):
        self.ended, self.says, self.cancels = [], says, cancels
        monkeypatch.setitem(SCHEDULERS, "slurm", self)
        monkeypatch.setattr("workflow.jobs.parsl_provider.submit", lambda job, site: "7")

    def find_by_id(self, ids, seconds):
        if isinstance(self.says, BaseException):
            raise self.says
        return Snapshot(0.0, {"7": JobStatus("7", "gnnscale-doctor", self.says)})

    def cancel(self, ids, seconds):
        if not self.cancels:
            raise SchedulerUnreachable("scancel: slurmctld is away")
        self.ended += ids


def in_queue(root, wait=60.0):
    return in_a_queue(at().site, "default", root, wait, lambda words: None)


def test_whatever_goes_wrong_its_job_does_not_stay(tmp_path, monkeypatch):
    stand = Stand(monkeypatch, RuntimeError("a mistake of ours"))
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        in_queue(tmp_path)
    assert stand.ended == ["7"]


def test_a_job_that_could_not_be_cancelled_is_told(tmp_path, monkeypatch):
    Stand(monkeypatch, RuntimeError("a mistake of ours"), cancels=False)
    with pytest.raises(
        UserError, match="job 7 may still be in the queue: scancel: slurmctld is away\nend it: scancel 7"
    ):
        in_queue(tmp_path)
    Stand(monkeypatch, "PENDING", cancels=False)
    (first,) = diagnosis.judge(at(), in_queue(tmp_path, wait=-1.0))
    assert first.state == "bad" and "job 7 may still be in the queue" in first.said and first.fix == "end it: scancel 7"
