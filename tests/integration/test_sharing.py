"""Jobs that stages share, and how they end: an evaluation after its training, conversions side by side."""

import json

import pytest

from tests.support.cluster import SHORT, Run, hold_training, spoil_module, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.faults]


def test_an_evaluation_is_carried_again(begin, slurm, tmp_path):
    """The job is told to stop while it trains: the next one trains on, and evaluates."""
    run = begin(until="evaluate", setup=hold_training(tmp_path))
    job = run.wait(lambda: (found := run.running()) and run.steps() > 0 and found, "steps")
    slurm.call("scancel", "--signal=USR1", "--batch", job)
    run.wait(lambda: run.events("ended"), "its end")
    (tmp_path / "go").touch()
    run.end()
    kinds = [(e["stage"].split("/")[0], e["kind"]) for e in run.events("ended")]
    assert kinds == [("train", "stopped"), ("evaluate", "not-begun"), ("train", "done"), ("evaluate", "done")]
    first, second = run.events("intend")
    assert (
        [id.split("/")[0] for id in first["stages"]]
        == [id.split("/")[0] for id in second["stages"]]
        == ["train", "evaluate"]
    )
    assert [len(list(run.folder(kind).glob("attempts/*/stdout"))) for kind in ("train", "evaluate")] == [2, 1]


def test_the_evaluation_alone_fails(begin, tmp_path):
    """The evaluation fails on a sick node and runs in another job, elsewhere, without the training."""
    sick = """
if platform.node() == "n1":
    print("Stale file handle", file=sys.stderr, flush=True)
    os._exit(1)
"""
    run = begin(SHORT, until="evaluate", setup=spoil_module(tmp_path, sick, "gnnscale.stages.evaluate"))
    run.end()
    kinds = [(e["stage"].split("/")[0], e["kind"]) for e in run.events("ended")]
    assert kinds == [("train", "done"), ("evaluate", "node"), ("evaluate", "done")]
    assert [len(job["stages"]) for job in run.events("intend")] == [2, 1] and len(run.submitted()) == 2
    assert "--exclude=n1" in (run.folder("evaluate") / "attempts" / "2" / "job.sh").read_text()


def test_a_driver_dies_while_a_job_evaluates(begin, tmp_path):
    """The next driver finds the training done, and adopts the job that runs the evaluation."""
    slow = f"""
while not os.path.exists({str(tmp_path / "go")!r}):
    time.sleep(0.1)
"""
    run = begin(SHORT, until="evaluate", setup=spoil_module(tmp_path, slow, "gnnscale.stages.evaluate"))
    run.wait(lambda: list(run.root.glob("evaluate/*/attempts/1/stdout")), "the evaluation to begin")
    run.kill()
    rows = json.loads(run.call("status", "--json").stdout)["stages"]
    assert {row["state"] for row in rows if row["kind"] == "evaluate"} == {"running"}
    run.start("--until", "evaluate")
    adopted = run.wait(lambda: run.events("adopt"), "the driver to find it")
    (tmp_path / "go").touch()
    run.end()
    assert [e["stage"].split("/")[0] for e in adopted] == ["evaluate"] and len(run.submitted()) == 1
    assert {e["kind"] for e in run.events("ended")} == {"done"} and len(run.events("ended")) == 2


def test_conversions_share_a_job_and_its_end(slurm, tmp_path):
    """Three sources run two at a time; somebody cancels the job, and those that are not done share another."""
    slow = f"""
while os.getcwd().rpartition("/")[2][:1] != "a" and not os.path.exists({str(tmp_path / "go")!r}):
    time.sleep(0.1)
"""
    sources = [
        {"name": name, "dataset": "generated", "options": {"source": "bulk", "structures": 60}} for name in "abc"
    ]
    site = {"node": {"cores": 2}, "setup": spoil_module(tmp_path, slow, "gnnscale.stages.convert")}
    run = Run(slurm, tmp_path, SHORT | {"data": sources}, site)
    try:
        run.start("--until", "convert")
        run.wait(lambda: len(list(run.root.glob("data/*/attempts/1/stdout"))) == 3, "all to have begun")
        assert len(list(run.root.glob("data/*/result.json"))) == 1 and len(run.submitted()) == 1
        cancelled = run.submitted()[0]
        slurm.call("scancel", cancelled)
        wait_until(lambda: cancelled not in slurm.active(), "its end")
        (tmp_path / "go").touch()
        run.end()
    finally:
        run.stop()
        slurm.empty()
    ended = {(e["stage"], e["kind"]) for e in run.events("ended")}
    assert ended >= {("convert/a", "done"), ("convert/b", "done"), ("convert/c", "done")}
    assert [len(job["stages"]) for job in run.events("intend")] == [3, 2] and len(run.submitted()) == 2
    scripts = [path.read_text() for path in run.root.glob("data/*/attempts/*/job.sh")]
    assert len(scripts) == 2 and all("#SBATCH --cpus-per-task=2" in text for text in scripts)
