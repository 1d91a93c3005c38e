"""Parsing of what schedulers print, recorded and broken, and the poller at a scheduler that does not answer."""

import itertools
import json
import stat
import threading
import time

import pytest

from tests.support.cluster import PATIENCE, wait_until
from workflow.scheduler import query
from workflow.scheduler.poller import SchedulerPoller
from workflow.scheduler.query import JobStatus, Scheduler, SchedulerUnreachable, Snapshot

SQUEUE = """\
14|RUNNING|None|n[1-2]|gs052f16db-1
15|PENDING|Resources||gs|odd name
16|COMPLETING|None|n3|gs1
17_[1-4]|PENDING|Priority||array
18|NEW_STATE|None|n1|from a later version
19|CANCELLED|None||gs2
"""
SACCT = """\
20|CANCELLED by 1000|None|0:15|n1|gs3
21|TIMEOUT|None|0:0|n1|gs4
22|OUT_OF_ME+|None|0:125|n1|gs5
23|FAILED|NonZeroExitCode|3:0|n1|gs6
24|RUNNING|None|0:0|n1|a runaway
25|NODE_FAIL|None|1:0|n[1-2]|gs7
"""


def test_squeue_is_read():
    jobs = {job.id: job for job in query.parse_squeue(SQUEUE + "garbage\n\n")}
    assert jobs["14"] == JobStatus("14", "gs052f16db-1", "RUNNING", "None", "n[1-2]")
    assert jobs["15"].name == "gs|odd name" and not jobs["15"].is_hopeless
    assert jobs["16"].is_active and jobs["18"].is_active, "who may still be there is not given up"
    assert not jobs["19"].is_active


def test_sacct_is_read():
    states = {job.id: (job.state, job.code) for job in query.parse_sacct(SACCT)}
    assert states["20"] == ("CANCELLED", 143) and states["21"][0] == "TIMEOUT" and states["23"] == ("FAILED", 3)
    assert states["25"][0] == "NODE_FAIL"


def commands(tmp_path, monkeypatch, **scripts):
    for name, text in scripts.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_what_squeue_has_forgotten_sacct_may_know(tmp_path, monkeypatch):
    said = f"cat <<'END'\n{SACCT}END"
    commands(tmp_path, monkeypatch, squeue=f"cat <<'END'\n{SQUEUE}END", sacct=said)
    jobs = query.slurm_find_by_id(["14", "23", "24", "99"], 60).jobs
    assert jobs.keys() == {"14", "23"}, "what accounting calls running, squeue would have had"
    commands(tmp_path, monkeypatch, sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert query.slurm_find_by_id(["14", "23"], 60).jobs.keys() == {"14"}


@pytest.mark.parametrize("script", ["exit 1", "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1", "sleep 5"])
def test_no_answer_is_not_an_empty_answer(tmp_path, monkeypatch, script):
    commands(tmp_path, monkeypatch, squeue=script, qstat=script)
    with pytest.raises(SchedulerUnreachable, match="squeue"):
        query.slurm_find_by_id(["14"], 0.3)
    with pytest.raises(SchedulerUnreachable, match="qstat"):
        query.pbs_find_by_id(["14"], 0.3)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(SchedulerUnreachable, match="no such file"):
        query.slurm_find_by_id(["14"], 0.3)


def test_the_shell_has_no_say(monkeypatch):
    """Commands get the variables that locate the scheduler, and no options; a job inherits what sbatch had."""
    kept = dict.fromkeys(["SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "PBS_SERVER", "PBS_CONF_FILE", "MINE"], "2")
    dropped = [
        "SBATCH_JOB_NAME",
        "SBATCH_ACCOUNT",
        "SLURM_NTASKS",
        "SLURM_JOB_ID",
        "SLURM_MEM_PER_NODE",
        "SRUN_CPUS_PER_TASK",
        "SQUEUE_FORMAT",
        "SACCT_FORMAT",
        "SCANCEL_USER",
        "PBS_JOBID",
        "PBS_O_QUEUE",
        "PBS_DPREFIX",
    ]
    for name, value in (kept | dict.fromkeys(dropped, "1")).items():
        monkeypatch.setenv(name, value)
    lines = query.run_command(["env"], 60).stdout.splitlines()
    assert {f"{name}={value}" for name, value in kept.items()} <= set(lines)
    assert not [line for line in lines if line.split("=")[0] in dropped]


PBS = {
    "1.pbs": {"Job_Name": "gs1-1", "job_state": "R", "exec_host": "n1/0*8+n2/1*8"},
    "2.pbs": {"Job_Name": "gs2-1", "job_state": "F", "Exit_status": -29},
    "3.pbs": {"Job_Name": "gs3-1", "job_state": "F", "Exit_status": 271},
    "4.pbs": {"Job_Name": "gs4-1", "job_state": "F", "Exit_status": 3, "exec_host": "n1/0"},
    "5.pbs": {"Job_Name": "gs5-1", "job_state": "F"},
    "6.pbs": {"Job_Name": "gs6-1", "job_state": "F", "Exit_status": 0},
    "7.pbs": {"Job_Name": "gs7-1", "job_state": "F", "Exit_status": -3},
    "8.pbs": {"Job_Name": "gs8-1", "job_state": "H"},
}
STATES = ["RUNNING", "TIMEOUT", "CANCELLED", "FAILED", "CANCELLED", "COMPLETED", "NODE_FAIL", "PENDING"]


def test_qstat_is_read_as_json_and_as_text():
    jobs = query.parse_qstat(json.dumps({"pbs_version": "23", "Jobs": PBS}))
    assert [job.state for job in jobs] == STATES and jobs[0].nodes == "n1,n2" and jobs[3].nodes == "n1"
    lines = [f"Job Id: {id}\n" + "".join(f"    {k} = {v}\n" for k, v in job.items()) for id, job in PBS.items()]
    folded = "\n".join(lines).replace("n1/0*8+n2/1*8", "n1/0*8+n\n\t2/1*8")
    assert query.parse_qstat_text(folded) == jobs
    assert query.parse_qstat('{"timestamp": 1}') == [] == query.parse_qstat("")


POLL_SECONDS = 0.2


class FakeScheduler:
    """Scheduler whose answers are made here, and which records when it is queried."""

    def __init__(self):
        self.queries, self.fails, self.messages = [], False, []

    def find_by_id(self, ids, seconds):
        self.queries.append(time.monotonic())
        if self.fails:
            raise SchedulerUnreachable("squeue: away")
        return Snapshot(time.time(), {id: JobStatus(id, "x", "RUNNING") for id in ids})


@pytest.fixture
def polled():
    fake = FakeScheduler()
    poller = SchedulerPoller(Scheduler(fake.find_by_id, None, None, None), POLL_SECONDS, 1.0, fake.messages.append)
    yield fake, poller
    poller.stop()


def test_one_query_for_all_jobs(polled):
    fake, poller = polled
    time.sleep(0.3)
    assert not fake.queries, "there is no job to ask for"
    for id in range(200):
        poller.follow(str(id))
    began, got = time.time(), []
    threads = [
        threading.Thread(target=lambda: got.append(poller.wait_for_snapshot(began, PATIENCE))) for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(each.began > began for each in got) and max(len(each.jobs) for each in got) == 200
    assert len(fake.queries) <= 2 + (time.time() - began) / POLL_SECONDS


def test_an_answer_that_cannot_be_parsed_ends_no_job(polled):
    """As from a version that prints something else: the message is reported, and the query is repeated."""
    fake, poller = polled
    answers, fake.find_by_id = fake.find_by_id, lambda ids, seconds: int("N/A")
    poller.scheduler = Scheduler(lambda *words: fake.find_by_id(*words), None, None, None)
    poller.follow("1")
    wait_until(lambda: fake.messages, "it to be told")
    assert fake.messages[0] == "ValueError: invalid literal for int() with base 10: 'N/A'"
    fake.find_by_id = answers
    assert poller.wait_for_snapshot(time.time(), PATIENCE).jobs and fake.messages[-1] == ""


def test_a_scheduler_that_does_not_answer_is_queried_less_and_less(polled):
    fake, poller = polled
    fake.fails = True
    poller.follow("1")
    wait_until(lambda: len(fake.queries) >= 4, "four queries")
    assert poller.wait_for_snapshot(0, 0.1) is None
    gaps = [b - a for a, b in itertools.pairwise(fake.queries)]
    assert all(gap > 0.39 * 2**k for k, gap in enumerate(gaps)), gaps
    assert set(fake.messages) == {"squeue: away"}
    fake.fails = False
    assert poller.wait_for_snapshot(time.time(), PATIENCE).jobs
    assert fake.messages[-1] == ""
