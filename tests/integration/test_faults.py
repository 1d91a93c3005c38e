"""What goes wrong on a cluster, brought about on a real Slurm, and what must come of it.

| # | fault | must happen | test |
|---|---|---|---|
| 1 | driver killed, job running | adopted, nothing submitted again | test_a_killed_driver_finds_its_job |
| 2 | Ctrl-C, SIGTERM | gone within 2 s, the job goes on | test_ctrl_c_leaves_the_job_running |
| 3 | driver killed between sbatch and its note | found by its name | test_killed_while_it_submits |
| 4 | an answer older than the submission | no verdict from it | test_an_old_answer_is_no_verdict |
| 5 | job cancelled by somebody else | goes on in another | test_cancelled_by_somebody_else |
| 6 | end of the walltime | goes on from its checkpoint, at no cost | test_told_to_stop_it_goes_on |
| 7 | preemption; requeue | goes on, counted once | test_preempted, test_requeued |
| 8 | a node dies | goes on without that node | test_a_node_dies |
| 9 | scheduler away at submission | waits, says since when | test_the_scheduler_is_away |
| 10 | scheduler away while a job runs | the job is not taken for failed | test_the_scheduler_is_away |
| 11 | sacct away, squeue there | does not matter | test_the_data_base_is_away |
| 12 | job forgotten by the scheduler | its files decide | test_forgotten_by_the_scheduler |
| 13 | sbatch prints more than an id | the id is found | test_sbatch_says_more |
| 14 | limit of submitted jobs | waits | test_the_limit_of_jobs |
| 15 | wrong account, partition, walltime | fails once, with what to do | test_wrong_..., test_a_wait_without_end |
| 16 | a rank crashes | all end, told with its last words, no retry | test_a_rank_crashes |
| 17 | out of memory | again with smaller micro-batches | test_out_of_memory |
| 18 | a rank hangs | ended and tried again | test_a_rank_hangs |
| 19 | torn checkpoint | the one before it | test_train.py |
| 20 | torn journal | at most its last line is lost | test_journal.py |
| 21 | disk full | nothing is submitted until there is room; told | test_the_disk_is_full, test_journal.py, test_workflow.py |
| 22 | run directory not writable | told before anything starts | test_workflow.py |
| 23 | killed in the middle of a conversion | made again | test_workflow.py, test_convert.py |
| 24 | output removed or altered | made again | test_workflow.py, test_files.py |
| 25 | setting or code changed | just what depends on it runs again | test_workflow.py, test_plan.py |
| 26 | two drivers | the second is refused | test_workflow.py |
| 27 | image missing, or of another architecture | refused before submission | test_containers.py |
| 28 | files seen late | waited for | test_files_seen_late |
"""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster import BEFORE_TRAINING, Cluster, Run, missing, require, wait

pytestmark = [pytest.mark.slurm, pytest.mark.faults]


def study(epochs):
    """One training, of three steps an epoch: a hundred epochs take some seconds."""
    return {
        "title": "One training",
        "data": [{"name": "bulk", "dataset": "generated", "options": {"source": "bulk", "structures": 60}}],
        "split": {"validation": 0.1, "test": 0.25},
        "train": {
            "model": {"kind": "egnn", "width": 8, "depth": 2, "cutoff": 4.0},
            "optim": {"epochs": epochs, "batch": 8},
        },
        "sweeps": [{"name": "one", "over": {"structures": [24]}}],
    }


SHORT, SOME, LONG = study(2), study(100), study(3000)


@pytest.fixture(scope="module")
def data(slurm, tmp_path_factory):
    """A run directory with the data converted, by a job of its own."""
    run = Run(slurm, tmp_path_factory.mktemp("data"), SHORT)
    run.start("--until", BEFORE_TRAINING[-1])
    run.end()
    return run.root


@pytest.fixture
def begin(slurm, data, tmp_path):
    """A driver at work on the training, and the end of all that is left of it."""
    begun = []

    def start(study=SOME, env=None, cluster=slurm, **site):
        run = Run(cluster, tmp_path, study, site, data)
        begun.append((run, cluster))
        run.start("--until", "train", **(env or {}))
        return run

    yield start
    for run, cluster in begun:
        run.stop()
        cluster.empty()


def test_a_killed_driver_finds_its_job(begin):
    run = begin(LONG)
    job = run.wait(run.running, "the training to run")
    run.kill()
    told = run.call("status").stdout
    assert f"job {job} on n" in told and "no driver at work" in told
    run.start("--until", "train")
    run.wait(lambda: run.events("adopt"), "the driver to find it")
    before = run.steps()
    run.wait(lambda: run.steps() > before, "it to go on")
    assert run.submitted() == [job] and [e["job"] for e in run.events("adopt")] == [job] and not run.events("ended")


def test_a_driver_killed_again_and_again(begin):
    run = begin()
    for pause in (0.6, 0.9, 1.3, 1.8):
        time.sleep(pause)
        run.kill()
        run.start("--until", "train")
    run.end()
    assert len(run.submitted()) == 1, "one job, whenever its driver died"
    assert len(list((run.folder() / "attempts").glob("*/job.out"))) == 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_ctrl_c_leaves_the_job_running(begin, slurm, signum, code):
    run = begin(LONG)
    job = run.wait(run.running, "the training to run")
    began = time.monotonic()
    run.driver.send_signal(signum)
    said = run.end(code)
    assert time.monotonic() - began < 2
    assert "to go on: python workflow/run.py" in said and "1 job goes on" in said
    assert slurm.active() == [job]
    assert f"cancelled  job {job}" in run.call("cancel").stdout
    wait(lambda: not slurm.active(), 20, "the job to end")
    assert "waiting" in run.call("status", "--json").stdout
    run.start("--until", "train")  # who cancels and then types it again wants it to go on
    run.wait(lambda: len(run.submitted()) == 2, "another job")


def test_cancelled_under_a_driver_it_is_not_tried_again(begin):
    run = begin()
    run.wait(run.running, "the training to run")
    assert "cancelled  job" in run.call("cancel", run.events("start")[-1]["stage"]).stdout
    assert "cancelled with `run.py cancel`" in run.end(1)
    assert len(run.submitted()) == 1


@pytest.mark.parametrize("place", ["before-submit", "after-submit"])
def test_killed_while_it_submits(begin, slurm, place):
    run = begin(SHORT, {"GNNSCALE_DIE_AT": place})
    run.driver.communicate(timeout=30)
    assert run.driver.returncode == -signal.SIGKILL and not run.submitted()
    name = run.events("intend")[-1]["name"]
    there = [id for id, called, _ in slurm.jobs() if called == name]
    assert len(there) == (place == "after-submit")
    run.start("--until", "train")
    run.end()
    assert len(run.submitted()) == 1 and run.submitted()[0] in (there or run.submitted())
    assert len([1 for _, called, _ in slurm.jobs() if called == name]) == (place == "after-submit")


def shim(run, command, text):
    """A command that is found before the real one, which it can call as "$REAL"."""
    folder = run.root.parent / "bin"
    folder.mkdir(exist_ok=True)
    path = folder / command
    path.write_text(f"#!/bin/bash\nREAL=/usr/bin/{command}\n{text}\n")
    path.chmod(0o755)
    run.env = run.env | {"PATH": f"{folder}:{run.env['PATH']}"}


def with_shim(slurm, data, tmp_path, command, text, study=SHORT, **site):
    run = Run(slurm, tmp_path, study, site, data)
    shim(run, command, text)
    run.start("--until", "train")
    return run


def test_an_old_answer_is_no_verdict(slurm, data, tmp_path):
    """squeue answers at once, but the answer arrives late: it never holds a job that was submitted meanwhile."""
    run = with_shim(slurm, data, tmp_path, "squeue", 'said=$("$REAL" "$@") || exit 1; sleep 2.5; echo "$said"')
    run.end()
    assert len(run.submitted()) == 1


def test_cancelled_by_somebody_else(begin, slurm):
    run = begin()
    job = run.wait(run.running, "the training to run")
    slurm.call("scancel", job)
    cancelled = time.time()
    run.end()
    first, second = run.events("ended")
    assert first["kind"] == "cancelled" and second["kind"] == "done" and len(run.submitted()) == 2
    assert first["time"] - cancelled < 8, "seen with the next look, once Slurm has ended it"
    assert "going on from step" in (run.folder() / "attempts" / "2" / "stdout").read_text()


def test_told_to_stop_it_goes_on(begin, slurm):
    """As Slurm does before the end of a job's time; twice, which costs none of what may be tried again."""
    run = begin(study(600))
    seen = set()
    for _ in range(2):
        job = run.wait(lambda: (found := run.running()) not in ("", *seen) and run.steps() > 0 and found, "steps")
        seen.add(job)
        slurm.call("scancel", "--signal=USR1", "--batch", job)
        run.wait(lambda: len(run.events("ended")) == len(seen), "the end of the job")
    run.end()
    ended = run.events("ended")
    assert [e["kind"] for e in ended] == ["stopped", "stopped", "done"]
    assert 0 < ended[0]["progress"] < ended[1]["progress"] < ended[2]["progress"]
    assert f"going on from step {ended[1]['progress']}" in (run.folder() / "attempts" / "3" / "stdout").read_text()


def test_two_jobs_without_progress_are_enough(begin):
    """A walltime too short for one checkpoint must not be tried for ever."""
    run = begin(SHORT, setup=["(sleep 1; kill -USR1 $$) &"])
    said = run.end(1)
    assert "2 jobs in a row" in said and "longer walltime" in said
    assert [e["kind"] for e in run.events("ended")] == ["stopped", "stopped"]


def test_preempted(begin, slurm):
    run = begin()
    run.wait(run.running, "the training to run")
    urgent = slurm.call(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--wrap=sleep 60"
    ).strip()
    run.wait(lambda: run.events("ended"), "the end of the first job")
    slurm.call("scancel", urgent)
    run.end()
    assert [e["kind"] for e in run.events("ended")] == ["preempted", "done"]


def test_requeued(begin, slurm):
    """By an administrator, in spite of --no-requeue: the same job begins again, and is the same attempt."""
    run = begin()
    job = run.wait(run.running, "the training to run")
    slurm.call("scontrol", "update", f"JobId={job}", "Requeue=1")
    slurm.call("scontrol", "requeue", job)
    run.wait(lambda: [e for e in run.events("job") if e["state"] == "PENDING"][2:], "it to wait again")
    wait(
        lambda: slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now", check=False) or True,
        5,
        "an early start",
    )
    run.end()
    assert run.submitted() == [job] and [e["kind"] for e in run.events("ended")] == ["done"]


def test_a_node_dies(begin, slurm):
    run = begin()
    run.wait(run.running, "the training to run")
    node = run.events("job")[-1]["nodes"]
    slurm.script("kill", node)
    try:
        run.end()
    finally:
        slurm.script("start", node)
    assert [e["kind"] for e in run.events("ended")] == ["node", "done"]
    assert f"--exclude={node}" in (run.folder() / "attempts" / "2" / "job.sh").read_text()
    wait(lambda: "down" not in slurm.call("sinfo", "--noheader", "--format=%T"), 30, "the node to come back")


def test_the_scheduler_is_away(begin, slurm):
    """Before the submission, and then while the job runs."""
    slurm.script("kill", "ctld")
    try:
        run = begin(study(400))
        run.wait(lambda: run.events("unreachable"), "the driver to notice")
        time.sleep(2)
        assert not run.submitted() and run.driver.poll() is None
        slurm.script("start", "ctld")
        run.wait(run.running, "the training to run")
        slurm.script("kill", "ctld")
        run.wait(lambda: len(run.events("unreachable")) == 2, "the driver to notice again")
    finally:
        slurm.script("start", "ctld")
    said = run.end()
    assert re.search(r"since \d\d:\d\d:\d\d the scheduler does not answer", said) and "answers again" in said
    assert len(run.submitted()) == 1 and [e["kind"] for e in run.events("ended")] == ["done"]


def test_forgotten_by_the_scheduler(data, tmp_path):
    """It ended while no driver looked, and Slurm knows nothing of it any more: once done, once cut off."""
    if why := missing():
        require("slurm", why)
    with Cluster(tmp_path / "up", 1, MIN_JOB_AGE=2) as cluster:
        for cut in (False, True):
            place = tmp_path / f"cut-{cut}"
            place.mkdir()
            run = Run(cluster, place, SHORT, {}, data)
            run.start("--until", "train")
            job = run.wait(lambda run=run: run.submitted() and cluster.active(), "the job to be there")[0]
            run.kill()
            if cut:
                cluster.call("scancel", job)
            wait(lambda job=job: job not in [id for id, _, _ in cluster.jobs()], 90, "Slurm to forget it")
            run.start("--until", "train")
            run.end()
            assert [e["kind"] for e in run.events("ended")] == (["lost", "done"] if cut else [])
            assert len(run.submitted()) == 1 + cut


def test_sbatch_says_more(slurm, data, tmp_path):
    text = 'echo "sbatch: verify_input: 3 GPU-hours are left"; id=$("$REAL" --parsable "$@") || exit 1\n'
    run = with_shim(
        slurm, data, tmp_path, "sbatch", text + 'echo "Submitted batch job $id on cluster virtual"; echo "Bye"'
    )
    run.end()
    assert len(run.submitted()) == 1 and run.submitted()[0].isdigit()


def test_wrong_partition(begin, slurm):
    run = begin(queues={"default": {"partition": "nope"}})
    said = run.end(1)
    assert "invalid partition specified: nope" in said and "--set train.queue=NAME" in said
    assert len(run.events("intend")) == 1 and not run.submitted()


@pytest.fixture(scope="module")
def accounted(tmp_path_factory):
    """With a data base, which knows accounts and their limits."""
    if why := missing("slurmdbd", "mariadbd"):
        require("slurm", why)
    with Cluster(tmp_path_factory.mktemp("accounted") / "up", 1, ACCOUNTING=1) as cluster:
        yield cluster


def test_wrong_account(begin, accounted):
    run = begin(SHORT, cluster=accounted, account="nonsense")
    said = run.end(1)
    assert "Invalid account" in said and "(it was nonsense): --set account=ACCOUNT" in said
    assert len(run.events("intend")) == 1 and not run.submitted()


def test_the_limit_of_jobs(begin, accounted):
    accounted.call("sacctmgr", "-i", "-Q", "modify", "user", "root", "set", "MaxSubmitJobs=1")
    other = accounted.call("sbatch", "--parsable", "--account=science", "--wrap=sleep 60").strip()
    try:
        run = begin(SHORT, cluster=accounted, account="science")
        run.wait(lambda: [e for e in run.events("job") if "SubmitJobLimit" in e["reason"]], "the refusal")
        time.sleep(1)
        assert not run.submitted() and "SubmitJobLimit" in run.call("status").stdout
        accounted.call("scancel", other)
        run.end()
    finally:
        accounted.call("sacctmgr", "-i", "-Q", "modify", "user", "root", "set", "MaxSubmitJobs=-1")
    assert len(run.submitted()) == 1


def test_the_data_base_is_away(begin, accounted):
    """sacct fails, squeue answers: jobs are followed all the same."""
    accounted.script("kill", "dbd")
    try:
        run = begin(SHORT, cluster=accounted)
        run.end()
    finally:
        accounted.script("start", "dbd")
    assert [e["kind"] for e in run.events("ended")] == ["done"]


def test_a_wait_without_end(begin, slurm):
    """Slurm takes the job and would let it wait for ever: longer than the partition's two hours."""
    run = begin(SHORT, node={"step_seconds": 4000})
    said = run.end(1)
    assert "would wait for ever: Partition" in said, said
    assert not slurm.active()


def spoiled(tmp_path, program, module="gnnscale.train"):
    """Lines for the head of a job, with which this module, and nothing else, begins with this program."""
    folder = tmp_path / "spoiled"
    folder.mkdir()
    head = f"import os, platform, sys, time\nif {module!r} in sys.orig_argv:\n"
    (folder / "sitecustomize.py").write_text(head + "".join(f"    {line}\n" for line in program.strip().splitlines()))
    return [f"export PYTHONPATH={folder}"]


def test_a_rank_crashes(begin, tmp_path):
    """The other one would wait for it for ever."""
    crash = """
if os.environ["SLURM_PROCID"] == "1":
    time.sleep(1)
    print("RuntimeError: a bug of ours", file=sys.stderr, flush=True)
    os._exit(3)
"""
    run = begin(SHORT, train={"nodes": [2, 2]}, setup=spoiled(tmp_path, crash))
    said = run.end(1)
    assert "exit code 3 of rank 1 on n2" in said and "| RuntimeError: a bug of ours" in said
    assert [e["kind"] for e in run.events("ended")] == ["application"]


def test_a_node_is_sick(begin, tmp_path):
    """Told by the words that a rank leaves, and avoided from then on."""
    sick = """
if platform.node() == "n1":
    print("NCCL WARN: unhandled system error", file=sys.stderr, flush=True)
    os._exit(1)
"""
    run = begin(SHORT, setup=spoiled(tmp_path, sick))
    run.end()
    assert [e["kind"] for e in run.events("ended")] == ["node", "done"]
    assert "--exclude=n1" in (run.folder() / "attempts" / "2" / "job.sh").read_text()


def test_out_of_memory(begin, tmp_path):
    """A driver that begins anew remembers what the earlier one found out."""
    full = """
if '"micro_batch_edges":null' in open("spec.json").read().replace(" ", ""):
    print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", file=sys.stderr, flush=True)
    os._exit(1)
"""
    run = begin(SHORT, setup=spoiled(tmp_path, full))
    run.wait(lambda: len(run.submitted()) == 2, "the second job")
    run.kill()
    run.start("--until", "train")
    run.end()
    assert [e["kind"] for e in run.events("ended")] == ["memory", "done"]
    assert json.loads((run.folder() / "spec.json").read_text())["runtime"]["micro_batch_edges"] > 100


def test_a_rank_hangs(begin, slurm):
    run = begin(study(300), scheduler={"stall_seconds": 15.0})
    run.wait(run.running, "the training to run")
    ranks = [pid for pid, where in processes("gnnscale.train") if where.startswith(str(run.root))]
    os.kill(ranks[0], signal.SIGSTOP)
    run.end()
    assert [e["kind"] for e in run.events("ended")] == ["stalled", "done"] and len(run.submitted()) == 2


def processes(word):
    """(pid, directory) of those whose command line holds the word."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if word in (each / "cmdline").read_text().split("\0"):
                found.append((int(each.name), os.readlink(each / "cwd")))
        except OSError:
            pass
    return found


def test_files_seen_late(begin, tmp_path):
    """The job is over, and what it wrote is seen here two seconds later."""
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
    run = begin(SHORT, setup=spoiled(tmp_path, late, "gnnscale.job"))
    run.end()
    assert [e["kind"] for e in run.events("ended")] == ["done"] and len(run.submitted()) == 1
    assert (run.folder() / "attempts" / "1" / "exit.json").stat().st_mtime < run.events("ended")[0]["time"]


@pytest.fixture
def full(tmp_path):
    """A small disk with no room left on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    with pytest.raises(OSError, match="No space"):
        (disk / "filler").write_bytes(bytes(2**20))
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_the_disk_is_full(begin, slurm, data, tmp_path, full):
    """What cannot be written down is not submitted."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.jsonl").symlink_to(full / "events.jsonl")
    run = begin(SHORT)
    run.wait(lambda: list(run.root.glob("train/*/attempts/1")), "the first attempt")
    time.sleep(1)
    assert not slurm.active() and run.driver.poll() is None
    (full / "filler").unlink()
    run.end()
    assert len(run.submitted()) == 1
