"""Jobs, ranks and nodes that fail on a real Slurm, and what the driver must do; the table is in test_faults.py."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.support.cluster import FAILS_ON_N1, PATIENCE, SHORT, find_processes, hold_training, spoil_module, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.faults]


def test_told_to_stop_it_goes_on(begin, slurm, tmp_path):
    """Slurm signals so before the end of a job's time; it happens twice here and uses up no retries."""
    run = begin(setup=hold_training(tmp_path))
    seen, before = set(), 0
    for _ in range(2):
        run.wait(lambda before=before: run.running() not in ("", *seen) and run.steps() > before, "steps")
        job = run.running()
        seen.add(job)
        slurm.call("scancel", "--signal=USR1", "--batch", job)
        run.wait(lambda: len(run.events("ended")) == len(seen), "the end of the job")
        before = run.events("ended")[-1]["progress"]
    (tmp_path / "go").touch()
    run.end()
    ended = run.events("ended")
    assert [e["kind"] for e in ended] == ["stopped", "stopped", "done"]
    assert 0 < ended[0]["progress"] < ended[1]["progress"] < ended[2]["progress"]
    assert f"going on from step {ended[1]['progress']}" in (run.folder() / "attempts" / "3" / "stdout").read_text()


def test_two_jobs_without_progress_are_enough(begin, tmp_path):
    """A walltime too short for one checkpoint must not be tried for ever."""
    # it is carried out in attempts/N, by the process that becomes gnnscale.job.batch_job; a rank is there to hear of it
    stop = "(until [ -e ../../begun ]; do sleep 0.1; done; rm ../../begun; kill -USR1 $$) &"
    endless = 'open("begun", "w").close()\ntime.sleep(600)'
    run = begin(SHORT, setup=[*spoil_module(tmp_path, endless), stop])
    said = run.end(1)
    assert "2 jobs in a row" in said and "longer walltime" in said
    assert [e["kind"] for e in run.events("ended")] == ["stopped", "stopped"]


def test_preempted(begin, slurm, tmp_path):
    run = begin(setup=hold_training(tmp_path))
    run.wait(run.running, "the training to run")
    words = ["sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null"]
    urgent = slurm.call(*words, "--wrap=sleep 1200").strip()
    try:
        run.wait(lambda: run.events("ended"), "the end of the first job")
    finally:
        slurm.call("scancel", urgent)
    (tmp_path / "go").touch()
    run.end()
    assert [e["kind"] for e in run.events("ended")] == ["preempted", "done"]


def test_a_node_dies(begin, slurm, tmp_path):
    run = begin(setup=hold_training(tmp_path))
    run.wait(run.running, "the training to run")
    node = run.events("job")[-1]["nodes"]
    slurm.script("kill", node)
    try:
        # else Slurm would see it after a minute of silence
        slurm.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=dead")
        (tmp_path / "go").touch()
        run.end()
    finally:
        slurm.script("start", node)
    assert [e["kind"] for e in run.events("ended")] == ["node", "done"]
    assert f"--exclude={node}" in (run.folder() / "attempts" / "2" / "job.sh").read_text()
    states = ("sinfo", "--noheader", "--format=%T")
    wait_until(lambda: set(slurm.call(*states).split()) == {"idle"}, "the node to come back")


def test_a_rank_crashes(begin, tmp_path):
    """The other rank would wait for it for ever."""
    crash = """
if os.environ["SLURM_PROCID"] == "1":
    time.sleep(1)
    print("RuntimeError: a bug of ours", file=sys.stderr, flush=True)
    os._exit(3)
"""
    run = begin(SHORT, train={"nodes": [2, 2]}, setup=spoil_module(tmp_path, crash))
    said = run.end(1)
    assert "exit code 3 of rank 1 on n2" in said and "| RuntimeError: a bug of ours" in said
    assert [e["kind"] for e in run.events("ended")] == ["application"]


def test_a_node_is_sick(begin, tmp_path):
    """The lines that a rank prints name the node, which later jobs avoid."""
    run = begin(SHORT, setup=spoil_module(tmp_path, FAILS_ON_N1))
    run.end()
    assert [e["kind"] for e in run.events("ended")] == ["node", "done"]
    assert "--exclude=n1" in (run.folder() / "attempts" / "2" / "job.sh").read_text()


def inside(slurm, node, *command):
    """Run a command as root of the node, whose mounts are its own."""
    pid = (slurm.state / "run" / f"{node}.pid").read_text().strip()
    subprocess.run(["nsenter", "--mount", "--target", pid, *command], check=True, capture_output=True)


def test_a_node_is_not_fit(begin, slurm):
    """n2 cannot write to the run directory; a job of two nodes finds that out before it starts a rank."""
    place = []

    def spoil(root):
        place.append(str(root))
        inside(slurm, "n2", "mount", "--bind", place[0], place[0])
        inside(slurm, "n2", "mount", "-o", "remount,ro,bind", place[0])

    run = begin(SHORT, before=spoil, train={"nodes": [2, 2]})
    try:
        run.end()
    finally:
        inside(slurm, "n2", "umount", place[0])
    first, second = run.events("ended")
    assert (first["kind"], second["kind"]) == ("node", "done") and "n2: " in first["message"], first
    assert "read-only file system" in first["message"]
    told = json.loads((run.folder() / "attempts" / "1" / "exit.json").read_text())
    assert list(told["sick"]) == ["n2"] and not told["begun"] and told["hosts"] == ["n1", "n2"]
    assert not (run.folder() / "attempts" / "1" / "stdout").exists(), "no rank was started"
    assert "--exclude=n2" in (run.folder() / "attempts" / "2" / "job.sh").read_text()


def test_there_are_no_other_nodes(begin, tmp_path):
    """All three have failed: Slurm would refuse a job that avoids them, so they are tried again."""
    (tmp_path / "said").touch()
    sick = f"""
if open({str(tmp_path / "said")!r}).read().count("x") < 3:
    print("x", file=open({str(tmp_path / "said")!r}, "a"))
    print("Stale file handle", file=sys.stderr, flush=True)
    os._exit(1)
"""
    run = begin(SHORT, setup=spoil_module(tmp_path, sick))
    run.end()
    assert [e["kind"] for e in run.events("ended")] == ["node", "node", "node", "done"]
    scripts = [(run.folder() / "attempts" / str(number) / "job.sh").read_text() for number in (3, 4)]
    assert "--exclude=" in scripts[0] and "--exclude=" not in scripts[1]


def test_out_of_memory(begin, tmp_path):
    """A new driver remembers that an earlier one saw the training run out of memory."""
    full = """
if '"micro_batch_edges":null' in open("spec.json").read().replace(" ", ""):
    print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", file=sys.stderr, flush=True)
    os._exit(1)
"""
    run = begin(SHORT, setup=hold_training(tmp_path, full))
    run.wait(lambda: len(run.submitted()) == 2, "the second job")
    run.kill()
    run.start("--until", "train")
    run.wait(lambda: run.events("adopt"), "the driver to find it")
    (tmp_path / "go").touch()
    run.end()
    assert [e["kind"] for e in run.events("ended")] == ["out-of-memory", "done"]
    assert json.loads((run.folder() / "spec.json").read_text())["runtime"]["micro_batch_edges"] > 100


def test_a_rank_hangs(begin, slurm, tmp_path):
    """One of two ranks hangs, and the other prints the line in which it waits for it.

    The site's patience is short only while the rank hangs: a start may take longer.
    """
    run = begin(train={"nodes": [2, 2]}, setup=hold_training(tmp_path))
    run.wait(run.running, "the training to run")
    ranks = [pid for pid, where in find_processes("gnnscale.stages.train") if where.startswith(str(run.root))]
    os.kill(ranks[0], signal.SIGSTOP)
    (tmp_path / "go").touch()
    run.kill()
    run.layer(train={"nodes": [2, 2]}, scheduler={"stall_seconds": 20.0, "late_seconds": 0.5})
    run.start("--until", "train")
    run.wait(lambda: len(run.submitted()) == 2, "another job")
    run.kill()
    run.layer(train={"nodes": [2, 2]})
    run.start("--until", "train")
    run.end()
    first, second = run.events("ended")
    assert (first["kind"], second["kind"]) == ("stalled", "done") and len(run.submitted()) == 2
    assert "no answer: T (stopped)" in first["message"]
    said = (run.folder() / "attempts" / "1" / "stderr").read_text()
    assert "in main" in said and "gnnscale/train/" in said, "the stacks of the other rank"


def test_files_seen_late(begin, tmp_path):
    """The job is over, and its files are seen here two seconds later."""
    late = """
real = os.replace
def replace(source, target):
    if not str(target).endswith("exit.json"):
        return real(source, target)
    if os.fork() == 0:
        os.setsid()  # out of the reach of Slurm, which ends what a job leaves behind
        if os.fork() == 0:
            time.sleep(2)
            real(source, target)
        os._exit(0)
os.replace = replace
"""
    run = begin(
        SHORT, setup=spoil_module(tmp_path, late, "gnnscale.job.batch_job"), scheduler={"late_seconds": PATIENCE}
    )
    run.end()
    assert [e["kind"] for e in run.events("ended")] == ["done"] and len(run.submitted()) == 1
    assert (run.folder() / "attempts" / "1" / "exit.json").stat().st_mtime < run.events("ended")[0]["time"]


@pytest.fixture
def full(tmp_path):
    """Mount a small disk with no room left on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    with pytest.raises(OSError, match="No space"):
        (disk / "filler").write_bytes(bytes(2**20))
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_the_disk_is_full(begin, slurm, data, tmp_path, full):
    """A job that cannot be recorded is not submitted."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.jsonl").symlink_to(full / "events.jsonl")
    run = begin(SHORT)
    run.wait(lambda: list(run.root.glob("train/*/attempts/1")), "the first attempt")
    time.sleep(1)
    assert not slurm.active() and run.driver.poll() is None
    (full / "filler").unlink()
    run.end()
    assert len(run.submitted()) == 1
