"""The doctor at a real Slurm, at a stand-in for PBS and on this machine: it finds what is broken, and nothing else."""

import json
import shutil
import signal
import subprocess
import time

import pytest

from tests.support.cluster import RUN, SHORT, Run, StandIn, wait_until

QUEUES = {"default": {"partition": "batch", "nodes": [1, 3], "max_walltime": "01:00:00"}}


def examined(done):
    """Map each finding to its state, message and fix."""
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    findings = json.loads(done.stdout)["findings"]
    return {f["what"]: (f["state"], f["said"], f["fix"]) for f in findings}


def wrong(found):
    return sorted(what for what, (state, _, _) in found.items() if state == "bad")


def test_this_machine(tmp_path):
    """Two ranks meet, started by the same script as a stage."""
    command = [*RUN, "doctor", "--json", "--root", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    found = examined(done)
    assert done.returncode == 0 and wrong(found) == [], found
    assert found["collective"][1].startswith("gloo, 2 ranks on 1 node: 64 MiB in ")
    assert not (tmp_path / "run").exists(), "it leaves nothing behind"


@pytest.fixture
def begin(slurm, tmp_path):
    yield lambda **site: Run(slurm, tmp_path, SHORT, {"queues": QUEUES} | site)
    slurm.empty()


@pytest.mark.slurm
def test_a_cluster_that_is_ready(begin):
    run = begin()
    done = run.call("doctor", "--json")
    found = examined(done)
    assert done.returncode == 0 and wrong(found) == [], found
    assert found["scheduler"][1].startswith("slurm")
    assert "on n1, n2" in found["job"][1] and "2 ranks on 2 nodes" in found["collective"][1]
    assert "the longest would start" in found["queue default"][1] and "1 of" not in found["study"][1]
    assert not run.root.exists()


@pytest.mark.slurm
def test_nodes_that_are_not_as_the_file_says(begin):
    gpus = {"count": 4, "vendor": "nvidia", "model": "A100-40GB", "memory_gb": 40, "peak_tflops": {"fp32": 19.5}}
    launch = {"interface": "hsn0", "ranks_per_node": 1}
    run = begin(node={"gpus": gpus}, launch=launch, modules=["cudatoolkit"])
    done = run.call("doctor", "--json")
    found = examined(done)
    assert done.returncode == 1
    assert wrong(found) == ["GPUs", "collective", "interface", "job", "modules"]
    assert "n1 has no hsn0" in found["interface"][1] and "slurm.yaml" in found["interface"][2]
    assert "shows none, the site's file has 4 x A100-40GB" in found["GPUs"][1]
    assert "while the ranks connected" in found["collective"][1]
    kept = run.root / "doctor"
    assert list(kept.glob("*/attempts/1/stderr")), "what it printed is kept"


@pytest.mark.slurm
def test_a_run_directory_that_only_this_machine_sees(begin, slurm, tmp_path):
    """The file system is mounted here and not on the nodes, which see the empty directory below it."""
    run = begin()
    aside = tmp_path / "aside"
    aside.mkdir()
    run.root = aside / "run"
    inside = 'mount -t tmpfs none "$0" && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", inside, str(aside), *run.command("doctor", "--json")],
        capture_output=True,
        text=True,
        timeout=300,
        env=run.env,
        cwd=tmp_path,
    )
    found = examined(done)
    assert done.returncode == 1 and wrong(found) == ["shared files"], found
    assert "wrote nothing in" in found["shared files"][1] and "--root" in found["shared files"][2]


@pytest.mark.slurm
def test_an_interpreter_that_nodes_do_not_have(begin):
    found = examined(begin(python="/opt/absent/python").call("doctor", "--json"))
    assert wrong(found) == ["job"] and "/opt/absent/python: No such file" in found["job"][1]
    assert "--set python=PATH" in found["job"][2]


@pytest.mark.slurm
def test_a_job_that_does_not_begin(begin, slurm):
    run = begin(scheduler={"directives": ["--begin=now+1hour"]})
    found = examined(run.call("doctor", "--json", "--wait", "0.02"))
    assert (
        wrong(found) == [] and found["compute nodes"][0] == "not checked" and "(BeginTime)" in found["compute nodes"][1]
    )
    wait_until(lambda: not slurm.active(), "its job to be cancelled")


@pytest.mark.slurm
def test_queues_that_are_not_as_the_file_says(begin, slurm):
    queues = {
        "absent": {"nodes": [1, 1], "max_walltime": "01:00:00"},
        "debug": {"nodes": [1, 3], "max_walltime": "02:00:00"},
        "default": {"partition": "batch", "nodes": [1, 3], "max_walltime": "01:00:00", "directives": ["-C a100"]},
    }
    before = {id for id, _, _ in slurm.jobs()}
    found = examined(begin(queues=queues).call("doctor", "--json"))
    assert wrong(found) == ["queue absent", "queue debug", "queue default"]
    assert "there is no 'absent'" in found["queue absent"][1]
    assert 'max_walltime: "00:30:00"' in found["queue debug"][2] and "nodes: [1, 1]" in found["queue debug"][2]
    assert "Invalid feature" in found["queue default"][1], "which only the scheduler knows"
    assert "no queue passed its check" in found["compute nodes"][1]
    assert {id for id, _, _ in slurm.jobs()} <= before, "no job is submitted (and Slurm may forget old ones meanwhile)"


PBS_QUEUES = {
    "default": {"partition": "workq", "nodes": [1, 3], "max_walltime": "02:00:00"},
    "long": {"partition": "workq", "nodes": [1, 8], "max_walltime": "24:00:00", "production": False},
}


def test_pbs(tmp_path):
    """The stand-in for PBS runs real jobs and ranks."""
    pbs = StandIn(tmp_path / "home", bugs=["bad-json"])
    run = Run(pbs, tmp_path, SHORT, pbs.site(queues=PBS_QUEUES))
    try:
        found = examined(run.call("doctor", "--json"))
        assert wrong(found) == ["queue long"], found["job"]
        assert 'max_walltime: "02:00:00"' in found["queue long"][2] and "nodes: [1, 3]" in found["queue long"][2]
        assert found["scheduler"][1].startswith("23.06.06") and found["account"][0] == "not checked"
        assert "gloo, 2 ranks on" in found["collective"][1]
        assert found["job history"] == ("ok", "off, as by default: files of the jobs say how they ended", "")
        site = pbs.site(queues=PBS_QUEUES)
        run.layer(**site | {"launch": {"flags": site["launch"]["flags"][4:]}})  # without PBS's own way to other nodes
        found = examined(run.call("doctor", "--json"))
        assert "ssh: connect to host " in found["job"][1] and "pbs_tmrsh" in found["job"][2], found["job"]
    finally:
        pbs.empty()


@pytest.mark.slurm
def test_accounts(accounted, tmp_path):
    run = Run(accounted, tmp_path, SHORT, {"queues": QUEUES | {"default": QUEUES["default"] | {"nodes": [1, 1]}}})
    found = examined(run.call("doctor", "--json", "--no-job", "--set", "account=science"))
    assert wrong(found) == [] and found["account"] == ("ok", "science", "")
    found = examined(run.call("doctor", "--json", "--no-job"))
    assert found["account"][0] == "ok" and "yours by default" in found["account"][1]
    found = examined(run.call("doctor", "--json", "--set", "account=scienze"))
    assert found["account"] == (
        "bad",
        "scienze is not one of your accounts",
        "--set account=scienze: did you mean 'science'?",
    )
    assert (
        "Invalid account" in found["queue default"][1]
        and "no job until this is fixed: account" in found["compute nodes"][1]
    )


@pytest.mark.slurm
def test_a_doctor_that_is_interrupted_takes_its_job_along(begin, slurm):
    run = begin(scheduler={"directives": ["--begin=now+1hour"]})
    before = set(slurm.active())
    doctor = subprocess.Popen(
        run.command("doctor"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=run.env,
        cwd=run.root.parent,
    )
    wait_until(lambda: set(slurm.active()) - before, "its job")
    time.sleep(0.5)
    doctor.send_signal(signal.SIGINT)
    _, said = doctor.communicate(timeout=120)
    assert doctor.returncode == 130 and "it was cancelled" in said and "Traceback" not in said
    wait_until(lambda: not set(slurm.active()) - before, "its job to be cancelled")
    shutil.rmtree(run.root)
