"""The poller at a scheduler that does not answer, and the surroundings in which a scheduler's commands run."""

import itertools
import threading
import time

import pytest

from tests.support.cluster import PATIENCE, wait_until
from workflow.scheduler.interface import JobStatus, SchedulerUnreachable, Snapshot, run_command
from workflow.scheduler.poller import SchedulerPoller


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
    lines = run_command(["env"], 60).stdout.splitlines()
    assert {f"{name}={value}" for name, value in kept.items()} <= set(lines)
    assert not [line for line in lines if line.split("=")[0] in dropped]


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
    poller = SchedulerPoller(fake, POLL_SECONDS, 1.0, fake.messages.append)
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
