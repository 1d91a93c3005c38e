"""A hundred jobs: submitted once, adopted with one query, found finished, by a driver that needs little memory.

The scheduler's commands are scripts that record how they are called: a hundred real trainings would take hours.
"""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from gnnscale.contract import files
from tests.support.cluster import SHORT, Run
from tests.workflow.plan.test_build import finish
from workflow.config import site_files, study_files
from workflow.plan import build
from workflow.run_directory import journal

SWEEP = {"model.width": list(range(4, 44, 4)), "structures": list(range(10, 40, 3))}
JOBS, POLL_SECONDS = 100, 60.0
SBATCH = """
exec 9>"$HERE/lock"; flock 9
id=$(( $(wc -l <"$HERE/jobs") + 1 ))
echo "$id|RUNNING|None|n1|$(sed -n 's/^#SBATCH --job-name=//p' "${!#}")" >>"$HERE/jobs"
echo "Submitted batch job $id"
"""
SQUEUE = 'echo asked >>"$HERE/asked"; cat "$HERE/jobs"'


class Shims:
    """Commands of Slurm that stand in for a cluster."""

    kind = "slurm"

    def __init__(self, place: Path):
        self.place = place
        place.mkdir()
        for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", "exit 1"), ("sacct", "exit 1")):
            (place / name).write_text(f"#!/bin/bash\nHERE={place}\n{text}\n")
            (place / name).chmod(0o755)
        (place / "jobs").touch()
        self.env = {"PATH": f"{place}:{os.environ['PATH']}"}

    def asked(self) -> int:
        return len((self.place / "asked").read_text().split()) if (self.place / "asked").exists() else 0


@pytest.fixture
def run(tmp_path):
    asked = SHORT | {"sweeps": [{"name": "grid", "over": SWEEP}]}
    scheduler = {"max_jobs": 2 * JOBS, "poll_seconds": POLL_SECONDS}
    made = Run(Shims(tmp_path / "bin"), tmp_path, asked, {"scheduler": scheduler})
    name, loaded = study_files.load(str(made.study))
    made.stages = build.build_stages(name, loaded, site_files.load("slurm"), made.root)
    made.root.mkdir()
    for stage in made.stages.values():
        if stage.kind in ("convert", "audit"):
            finish(stage, made.stages, made.root)
    yield made
    made.stop()


def most_memory(pid: int) -> int:
    """Return the largest memory of the process so far, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def running(run, since=0):
    return {e["name"] for e in run.events("job")[since:] if e["state"] == "RUNNING"}


def test_a_hundred_jobs(run):
    run.start()
    run.wait(lambda: len(run.submitted()) == JOBS, "all to be submitted")
    jobs = run.events("intend")
    assert all(sorted(id.split("/")[0] for id in job["stages"]) == ["evaluate", "train"] for job in jobs)
    run.kill()
    told, asked, began = len(run.events("job")), run.cluster.asked(), time.monotonic()
    run.start()
    run.wait(lambda: len(running(run, told)) == JOBS, "all to be found")
    most = 3 + (time.monotonic() - began) / POLL_SECONDS  # one question about all, or one more for those that came late
    assert 1 <= run.cluster.asked() - asked <= most
    assert len(run.submitted()) == len(run.events("adopt")) == JOBS
    assert 30e6 < most_memory(run.driver.pid) < 150e6
    run.driver.send_signal(signal.SIGINT)
    assert f"{JOBS} jobs keep running" in run.end(130)
    for stage in run.stages.values():
        if stage.kind == "train":  # as the jobs would have left it, while nobody looked
            finish(stage, run.stages, run.root)
            leave(run.root / stage.folder / "attempts" / "1", 0)
    asked = run.cluster.asked()
    run.start("--until", "train")
    assert "nothing to do" in run.end() and run.cluster.asked() == asked


def leave(attempt, code):
    now = int(time.time())
    said = {
        "code": code,
        "rank": None,
        "host": "",
        "launcher": code,
        "job": "1",
        "hosts": ["n1"],
        "begin": now,
        "end": now,
    }
    files.write(attempt / "exit.json", json.dumps(said))


def test_what_ended_while_nobody_looked_is_closed_in_the_journal(run):
    """A stage that has a result is followed no more, by this driver or by any later one."""
    run.start("--until", "train")
    run.wait(lambda: len(run.submitted()) == JOBS, "all to be submitted")
    run.kill()
    trained = [stage for stage in run.stages.values() if stage.kind == "train"]
    for stage in trained[1:]:
        finish(stage, run.stages, run.root)
    run.start("--until", "train")
    run.wait(lambda: len(run.events("ended")) == JOBS - 1, "all but one to be found")
    (left,) = journal.unfinished_jobs(run.root)
    assert set(left.stages) == {trained[0].id} and len(run.submitted()) == JOBS
