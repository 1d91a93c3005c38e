"""The smoke study on a real Slurm, with trainings of two ranks on two nodes; and its run directory on another site."""

import copy
import json
import shutil
import time
from pathlib import Path

import pytest
import yaml

from tests.support.cluster import Run, hold_training
from tests.support.corpus import ROOT

pytestmark = pytest.mark.slurm
SMOKE = yaml.safe_load((ROOT / "workflow" / "studies" / "smoke.yaml").read_text())
SMOKE["levers"] = {"model": {"kind": "egnn", "width": 16, "depth": 2, "cutoff": 4.0}, "batch": 16, "steps": 1}


@pytest.fixture(scope="module")
def finished(slurm, tmp_path_factory):
    run = Run(slurm, tmp_path_factory.mktemp("smoke"), SMOKE, {"train": {"nodes": [2, 2]}})
    run.start()
    run.most = 0.0
    while run.driver.poll() is None:
        run.most = max(run.most, resident(run.driver.pid))
        time.sleep(0.2)
    run.said = run.end()
    return run


def resident(pid):
    """Return the largest memory of the process so far, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def test_every_stage_is_done_and_each_training_was_one_job(finished):
    assert "14 of 14 stages done" in finished.said and (finished.root / "report.html").stat().st_size > 0
    plan = json.loads((finished.root / "plan.json").read_text())["stages"]
    jobs = finished.events("intend")
    here = {stage["id"] for stage in plan if stage["kind"] in ("scaling", "report")}  # these run where the driver runs
    assert sorted([*here, *(id for job in jobs for id in job["stages"])]) == sorted(stage["id"] for stage in plan)
    for folder in (*(finished.root / "train").iterdir(), *(finished.root / "levers").iterdir()):
        told = json.loads((folder / "attempts" / "1" / "exit.json").read_text())
        assert told["code"] == 0 and len(set(told["hosts"])) == 2
        assert "2 rank(s)" in (folder / "attempts" / "1" / "stdout").read_text()
        script = (folder / "attempts" / "1" / "job.sh").read_text()
        assert "#SBATCH --nodes=2" in script and "srun" in script and script.count("#SBATCH --job-name=") == 1
        assert "gnnscale.machine.node_check" in script, "on several nodes these are looked at first"
    kinds = sorted(tuple(id.split("/")[0] for id in job["stages"]) for job in jobs)
    assert kinds == [("audit",), ("convert", "convert"), ("memory_levers",), *[("train", "evaluate")] * 4], (
        "no second wait in the queue"
    )
    assert len({job["name"] for job in jobs}) == len(jobs) == len(finished.submitted())


def test_the_driver_stays_small(finished):
    assert 30e6 < finished.most < 150e6


def test_nothing_is_left_to_do_here_or_elsewhere(finished, tmp_path):
    """A copy continues on another site: keys do not depend on the site, and names of jobs depend on the directory."""
    assert "nothing to do" in finished.call("run").stdout
    other = copy.copy(finished)
    other.root = tmp_path / "copy"
    shutil.copytree(finished.root, other.root, symlinks=True)
    shutil.rmtree(next((other.root / "evaluate").glob("w8-d2-n24-*")))
    states = {s["id"]: s["state"] for s in json.loads(other.call("plan", "--json", site="local").stdout)["stages"]}
    assert states.pop("evaluate/w8-d2-n24") == "run"
    assert {states.pop("scaling/all"), states.pop("report/all")} == {"check"}
    assert set(states.values()) == {"done"}


def test_verbs_tell_of_jobs(finished, slurm):
    rows = json.loads(finished.call("status", "--json").stdout)["stages"]
    assert {row["state"] for row in rows} == {"done"}
    assert "2 rank(s)" in finished.call("logs", "train/w8-d2-n24").stdout
    assert "no job of this study is in the queue" in finished.call("cancel").stdout
    assert not slurm.active()


def trainings(run):
    """List the jobs of trainings."""
    return [job for job in run.events("intend") if any(id.startswith("train/") for id in job["stages"])]


def test_trainings_share_a_job_and_are_found_in_it(finished, slurm, tmp_path):
    """A queue that takes only jobs of two nodes gets two trainings a job, each on a node of its own, with its evaluation."""
    queues = {"large": {"partition": "", "nodes": [2, 2], "max_walltime": "01:00:00"}}
    site = {"queues": queues, "train": {"queue": "large"}, "setup": hold_training(tmp_path)}
    run = Run(slurm, tmp_path, SMOKE, site, finished.root)
    try:
        run.start("--until", "evaluate")
        run.wait(lambda: len(trainings(run)) == 2, "both jobs")
        run.wait(lambda: len(list(run.root.glob("train/*/progress.json"))) > 1, "trainings to run")
        run.kill()
        run.start("--until", "evaluate")
        run.wait(lambda: run.events("adopt"), "the driver to find them")
        (tmp_path / "go").touch()
        run.end()
        assert len(trainings(run)) == 2 and len(run.submitted()) == len(run.events("intend")) and run.events("adopt")
        told = [json.loads(path.read_text()) for path in run.root.glob("train/*/attempts/1/exit.json")]
        assert len(told) == 4 and {len(each["hosts"]) for each in told} == {1}
        for job in {each["job"] for each in told}:
            assert len({each["hosts"][0] for each in told if each["job"] == job}) == 2, "each on a node of its own"
        where = {kind: places(run.root / kind) for kind in ("train", "evaluate")}
        assert where["train"] == where["evaluate"] and len(where["train"]) == 4
    finally:
        run.stop()
        slurm.empty()


def places(folder):
    """Map each stage to the job and the hosts of its first attempt."""
    told = {path.parts[-4][:-9]: json.loads(path.read_text()) for path in folder.glob("*/attempts/1/exit.json")}
    return {name: (each["job"], each["hosts"], each["code"]) for name, each in told.items()}
