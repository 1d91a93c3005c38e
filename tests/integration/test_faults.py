"""Faults of a cluster, brought about on a real Slurm, and what the driver must do about them.

Here: drivers and the scheduler. In test_failures.py: jobs, their ranks and their nodes. In test_sharing.py: jobs of
several stages.

| # | fault | the driver must | test |
|---|---|---|---|
| 1 | driver killed, job running | adopt the job, submit nothing again | test_a_killed_driver_finds_its_job |
| 2 | Ctrl-C, SIGTERM | end at once, leave the job running | test_ctrl_c_leaves_the_job_running |
| 3 | driver killed between sbatch and its journal entry | find the job by its name | test_killed_while_it_submits |
| 4 | an answer older than the submission | conclude nothing from it | test_an_old_answer_is_no_verdict |
| 5 | job cancelled by somebody else | continue in another job | test_cancelled_by_somebody_else |
| 6 | end of the walltime | continue from the checkpoint, without using up a retry | test_told_to_stop_it_goes_on |
| 7 | preemption; requeue | continue, counted once | test_preempted, test_requeued |
| 8 | a node dies | continue without that node | test_a_node_dies |
| 9 | scheduler away at submission | wait, print since when | test_the_scheduler_is_away |
| 10 | scheduler away while a job runs | not take the job for failed | test_the_scheduler_is_away |
| 11 | sacct away, squeue there | continue | test_the_data_base_is_away |
| 12 | job forgotten by the scheduler | decide by its files | test_forgotten_by_the_scheduler |
| 13 | sbatch prints more than an id | find the id | test_sbatch_says_more |
| 14 | limit of submitted jobs | wait | test_the_limit_of_jobs |
| 15 | wrong account, partition, walltime | fail once, with a hint | test_wrong_..., test_a_wait_without_end |
| 16 | a rank crashes | end all ranks, print its last lines, not retry | test_a_rank_crashes |
| 17 | out of memory | retry with smaller micro-batches | test_out_of_memory |
| 18 | a rank hangs | print where each rank is, end the job, retry | test_a_rank_hangs |
| 19 | torn checkpoint | use the one before it | test_train.py |
| 20 | torn journal | lose its last line at most | test_journal.py |
| 21 | disk full | submit nothing until there is room, and report it | test_the_disk_is_full, test_journal.py, test_workflow.py |
| 22 | run directory not writable | report it before anything starts | test_workflow.py |
| 23 | killed in the middle of a conversion | convert again | test_workflow.py, test_convert.py |
| 24 | output removed or altered | make it again | test_workflow.py, test_files.py |
| 25 | setting or code changed | run again only what depends on it | test_workflow.py, test_build.py |
| 26 | two drivers | refuse the second | test_workflow.py |
| 27 | image missing, or of another architecture | refuse before submission | test_checks.py |
| 28 | files seen late | wait for them | test_files_seen_late |
| 29 | a node is not fit | avoid it before anything runs there, without using up a retry | test_a_node_is_not_fit |
| 30 | the time is over before the evaluation of a training | run it in the next job | test_an_evaluation_is_carried_again |
| 31 | the evaluation alone fails | run it in a job of its own, keep the training | test_the_evaluation_alone_fails |
| 32 | a job that conversions share is ended | continue each | test_conversions_share_a_job_and_its_end |
"""

import os
import re
import signal
import time

import pytest

from tests.support.cluster import (
    LONG,
    PATIENCE,
    SHORT,
    Cluster,
    Run,
    explain_missing,
    hold_training,
    measure_patience,
    require,
    wait_until,
)

pytestmark = [pytest.mark.slurm, pytest.mark.faults]


def test_a_killed_driver_finds_its_job(begin):
    run = begin(LONG)
    job = run.wait(run.running, "the training to run")
    run.kill()
    told = run.call("status").stdout
    assert f"job {job} on n" in told and "no driver is running" in told
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
    patience, began = measure_patience(lambda: run.call("status")), time.monotonic()
    run.driver.send_signal(signum)
    said = run.end(code)
    assert time.monotonic() - began < patience, "two seconds, on a machine that has them"
    assert "to continue: python workflow/run.py" in said and "1 job keeps running" in said
    assert slurm.active() == [job]
    assert f"cancelled  job {job}" in run.call("cancel").stdout
    wait_until(lambda: not slurm.active(), "the job to end")
    assert "waiting" in run.call("status", "--json").stdout
    run.start("--until", "train")  # who cancels and then types it again wants it to go on
    run.wait(lambda: len(run.submitted()) == 2, "another job")


def test_cancelled_under_a_driver_it_is_not_tried_again(begin, tmp_path):
    run = begin(setup=hold_training(tmp_path))
    run.wait(run.running, "the training to run")
    assert "cancelled  job" in run.call("cancel", run.events("start")[-1]["stage"]).stdout
    assert "cancelled with `python workflow/run.py cancel`" in run.end(1)
    assert len(run.submitted()) == 1


@pytest.mark.parametrize("place", ["before-submit", "after-submit"])
def test_killed_while_it_submits(begin, slurm, tmp_path, place):
    """The driver's shell sets another name for all jobs, which sbatch prefers to the script's."""
    run = begin(SHORT, {"GNNSCALE_DIE_AT": place, "SBATCH_JOB_NAME": "mine"}, setup=hold_training(tmp_path))
    run.driver.communicate(timeout=PATIENCE)
    assert run.driver.returncode == -signal.SIGKILL and not run.submitted()
    name = run.events("intend")[-1]["name"]
    there = [id for id, called, _ in slurm.jobs() if called == name]
    assert len(there) == (place == "after-submit")
    run.start("--until", "train")
    run.wait(run.submitted, "the driver to know its job")
    (tmp_path / "go").touch()
    run.end()
    assert len(run.submitted()) == 1 and run.submitted()[0] in (there or run.submitted())
    assert len([1 for _, called, _ in slurm.jobs() if called == name]) == (place == "after-submit")


def shim(place, command, text):
    """Return an environment whose command hides the real one, which it can call as "$REAL"."""
    folder = place / "bin"
    folder.mkdir(exist_ok=True)
    path = folder / command
    path.write_text(f"#!/bin/bash\nREAL=/usr/bin/{command}\n{text}\n")
    path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_an_old_answer_is_no_verdict(begin, tmp_path):
    """An answer of squeue that arrives late lacks the jobs that were submitted meanwhile."""
    run = begin(SHORT, shim(tmp_path, "squeue", 'said=$("$REAL" "$@") || exit 1; sleep 2.5; echo "$said"'))
    run.end()
    assert len(run.submitted()) == 1


def test_cancelled_by_somebody_else(begin, slurm, tmp_path):
    run = begin(setup=hold_training(tmp_path), scheduler={"late_seconds": PATIENCE})
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
    """An administrator can requeue a job despite --no-requeue: it begins again, as the same attempt."""
    run = begin(setup=hold_training(tmp_path))
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
    kinds = [e["kind"] for e in run.events("ended")]
    # Where the scheduler does not show the job between its two starts, it has ended and its work goes on in another.
    assert (run.submitted() == [job] and kinds == ["done"]) or kinds == ["stopped", "done"]


def test_the_scheduler_is_away(begin, slurm, tmp_path):
    """The scheduler is away before the submission, and again while the job runs."""
    slurm.script("kill", "ctld")
    try:
        run = begin(setup=hold_training(tmp_path))
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
    """The job ended while no driver ran, and Slurm has forgotten it: once done, once cut off."""
    if why := explain_missing():
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
            wait_until(lambda job=job: job not in [id for id, _, _ in cluster.jobs()], "Slurm to forget it")
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
    """Jobs are followed by squeue alone where sacct fails."""
    accounted.script("kill", "dbd")
    try:
        run = begin(SHORT, cluster=accounted)
        run.end()
    finally:
        accounted.script("start", "dbd")
    assert [e["kind"] for e in run.events("ended")] == ["done"]


def test_a_wait_without_end(begin, slurm):
    """Slurm accepts a job longer than the partition's two hours, and would let it wait for ever."""
    run = begin(SHORT, node={"step_seconds": 4000})
    said = run.end(1)
    assert "would wait for ever: Partition" in said, said
    assert not slurm.active()
