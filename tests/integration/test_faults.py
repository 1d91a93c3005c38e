"""What goes wrong on a cluster, brought about on a real Slurm, and what must come of it. Here: drivers and the scheduler;
in test_failures.py: jobs, their ranks and their nodes; in test_sharing.py: jobs of several stages.

| # | fault | must happen | test |
|---|---|---|---|
| 1 | driver killed, job running | adopted, nothing submitted again | test_a_killed_driver_finds_its_job |
| 2 | Ctrl-C, SIGTERM | gone at once, the job goes on | test_ctrl_c_leaves_the_job_running |
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
| 18 | a rank hangs | told where each rank is, ended and tried again | test_a_rank_hangs |
| 19 | torn checkpoint | the one before it | test_train.py |
| 20 | torn journal | at most its last line is lost | test_journal.py |
| 21 | disk full | nothing is submitted until there is room; told | test_the_disk_is_full, test_journal.py, test_workflow.py |
| 22 | run directory not writable | told before anything starts | test_workflow.py |
| 23 | killed in the middle of a conversion | made again | test_workflow.py, test_convert.py |
| 24 | output removed or altered | made again | test_workflow.py, test_files.py |
| 25 | setting or code changed | just what depends on it runs again | test_workflow.py, test_plan.py |
| 26 | two drivers | the second is refused | test_workflow.py |
| 27 | image missing, or of another architecture | refused before submission | test_images.py |
| 28 | files seen late | waited for | test_files_seen_late |
| 29 | a node is not fit | left out before anything runs there, at no cost | test_a_node_is_not_fit |
| 30 | the time is over before the evaluation of a training | the next job does it | test_an_evaluation_is_carried_again |
| 31 | the evaluation alone fails | again in a job of its own, the training is kept | test_the_evaluation_alone_fails |
| 32 | a job that conversions share is ended | each goes on | test_conversions_share_a_job_and_its_end |
"""

import os
import re
import signal
import time

import pytest

from tests.support.cluster import LONG, PATIENCE, SHORT, Cluster, Run, at_once, missing, require, wait, waiting

pytestmark = [pytest.mark.slurm, pytest.mark.faults]


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
    soon, began = at_once(lambda: run.call("status")), time.monotonic()
    run.driver.send_signal(signum)
    said = run.end(code)
    assert time.monotonic() - began < soon, "two seconds, on a machine that has them"
    assert "to go on: python workflow/run.py" in said and "1 job goes on" in said
    assert slurm.active() == [job]
    assert f"cancelled  job {job}" in run.call("cancel").stdout
    wait(lambda: not slurm.active(), "the job to end")
    assert "waiting" in run.call("status", "--json").stdout
    run.start("--until", "train")  # who cancels and then types it again wants it to go on
    run.wait(lambda: len(run.submitted()) == 2, "another job")


def test_cancelled_under_a_driver_it_is_not_tried_again(begin, tmp_path):
    run = begin(setup=waiting(tmp_path))
    run.wait(run.running, "the training to run")
    assert "cancelled  job" in run.call("cancel", run.events("start")[-1]["stage"]).stdout
    assert "cancelled with `run.py cancel`" in run.end(1)
    assert len(run.submitted()) == 1


@pytest.mark.parametrize("place", ["before-submit", "after-submit"])
def test_killed_while_it_submits(begin, slurm, place):
    """By a driver whose shell would have another name for all jobs, which sbatch prefers to the script's."""
    run = begin(SHORT, {"GNNSCALE_DIE_AT": place, "SBATCH_JOB_NAME": "mine"})
    run.driver.communicate(timeout=PATIENCE)
    assert run.driver.returncode == -signal.SIGKILL and not run.submitted()
    name = run.events("intend")[-1]["name"]
    there = [id for id, called, _ in slurm.jobs() if called == name]
    assert len(there) == (place == "after-submit")
    run.start("--until", "train")
    run.end()
    assert len(run.submitted()) == 1 and run.submitted()[0] in (there or run.submitted())
    assert len([1 for _, called, _ in slurm.jobs() if called == name]) == (place == "after-submit")


def shim(place, command, text):
    """Environment with a command that is found before the real one, which it can call as "$REAL"."""
    folder = place / "bin"
    folder.mkdir(exist_ok=True)
    path = folder / command
    path.write_text(f"#!/bin/bash\nREAL=/usr/bin/{command}\n{text}\n")
    path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_an_old_answer_is_no_verdict(begin, tmp_path):
    """squeue answers at once, but the answer arrives late: it never holds a job that was submitted meanwhile."""
    run = begin(SHORT, shim(tmp_path, "squeue", 'said=$("$REAL" "$@") || exit 1; sleep 2.5; echo "$said"'))
    run.end()
    assert len(run.submitted()) == 1


def test_cancelled_by_somebody_else(begin, slurm, tmp_path):
    run = begin(setup=waiting(tmp_path), scheduler={"late_seconds": PATIENCE})
    job = run.wait(run.running, "the training to run")
    slurm.call("scancel", job)
    cancelled = time.time()
    (tmp_path / "go").touch()
    run.end()
    first, second = run.events("ended")
    assert first["kind"] == "cancelled" and second["kind"] == "done" and len(run.submitted()) == 2
    assert first["time"] - cancelled < PATIENCE, "no file is waited for that may be seen late"
    assert "going on from step" in (run.folder() / "attempts" / "2" / "stdout").read_text()


def test_requeued(begin, slurm, tmp_path):
    """By an administrator, in spite of --no-requeue: the same job begins again, and is the same attempt."""
    run = begin(setup=waiting(tmp_path))
    job = run.wait(run.running, "the training to run")
    slurm.call("scontrol", "update", f"JobId={job}", "Requeue=1")
    slurm.call("scontrol", "requeue", job)

    def waits_again():
        states = [e["state"] for e in run.events("job")]  # waiting is told as often as its reason changes
        return "RUNNING" in states and "PENDING" in states[states.index("RUNNING") :]

    run.wait(waits_again, "it to wait again")
    (tmp_path / "go").touch()
    slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)  # else it waits two minutes
    run.end()
    assert run.submitted() == [job] and [e["kind"] for e in run.events("ended")] == ["done"]


def test_the_scheduler_is_away(begin, slurm, tmp_path):
    """Before the submission, and then while the job runs."""
    slurm.script("kill", "ctld")
    try:
        run = begin(setup=waiting(tmp_path))
        run.wait(lambda: run.events("unreachable"), "the driver to notice")
        time.sleep(2)
        assert not run.submitted() and run.driver.poll() is None
        slurm.script("start", "ctld")
        run.wait(run.running, "the training to run")
        before = len(run.events("unreachable"))
        slurm.script("kill", "ctld")
        run.wait(lambda: len(run.events("unreachable")) > before, "the driver to notice again")
        (tmp_path / "go").touch()
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
            later = {"scheduler": {"directives": ["--begin=now+1hour"]}}  # it must not be done before it is cancelled
            run = Run(cluster, place, SHORT, later if cut else {}, data)
            run.start("--until", "train")
            job = run.wait(lambda run=run: run.submitted() and cluster.active(), "the job to be there")[0]
            run.kill()
            if cut:
                cluster.call("scancel", job)
                run.layer()
            wait(lambda job=job: job not in [id for id, _, _ in cluster.jobs()], "Slurm to forget it")
            run.start("--until", "train")
            run.end()
            assert [e["kind"] for e in run.events("ended")] == (["lost", "done"] if cut else [])
            assert len(run.submitted()) == 1 + cut


def test_sbatch_says_more(begin, tmp_path):
    text = 'echo "sbatch: verify_input: 3 GPU-hours are left"; id=$("$REAL" --parsable "$@") || exit 1\n'
    run = begin(SHORT, shim(tmp_path, "sbatch", text + 'echo "Submitted batch job $id on cluster virtual"; echo "Bye"'))
    run.end()
    assert len(run.submitted()) == 1 and run.submitted()[0].isdigit()


def test_wrong_partition(begin, slurm):
    run = begin(queues={"default": {"partition": "nope"}})
    said = run.end(1)
    assert "invalid partition specified: nope" in said and "--set train.queue=NAME" in said
    assert len(run.events("intend")) == 1 and not run.submitted()


def test_wrong_account(begin, accounted):
    run = begin(SHORT, cluster=accounted, account="nonsense")
    said = run.end(1)
    assert "Invalid account" in said and "(it was nonsense): --set account=ACCOUNT" in said
    assert len(run.events("intend")) == 1 and not run.submitted()


def test_the_limit_of_jobs(begin, accounted):
    accounted.call("sacctmgr", "-i", "-Q", "modify", "user", "root", "set", "MaxSubmitJobs=1")
    words = ["sbatch", "--parsable", "--account=science", "--output=/dev/null"]
    other = accounted.call(*words, "--wrap=sleep 1200").strip()
    try:
        run = begin(SHORT, cluster=accounted, account="science")
        run.wait(lambda: [e for e in run.events("job") if "SubmitJobLimit" in e["reason"]], "the refusal")
        time.sleep(1)
        assert not run.submitted() and "SubmitJobLimit" in run.call("status").stdout
        accounted.call("scancel", other)
        run.end()
    finally:
        accounted.call("scancel", other, check=False)
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
