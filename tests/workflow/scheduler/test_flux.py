"""Answers of Flux, as the manuals of flux-core show them. No Flux has run these."""

import pytest

from workflow.config import site_files
from workflow.scheduler import flux
from workflow.scheduler.flux import FluxScheduler
from workflow.scheduler.interface import JobStatus, SchedulerUnreachable
from workflow.scheduler.limits import QueueLimit
from workflow.scheduler.queue_facts import QueueFacts

SCHEDULER = FluxScheduler()
# flux jobs -n --format=..., in the words of its library, not of its manual; without UTF-8 there is f in place of ƒ
JOBS = """\
ƒM7Zq9AKHno|RUN|||corona[171-172]|gs1-1
fDkrou8xo|SCHED||||gs2|odd name
ƒ2kL1|CANCELED|-128|cancel||gs3-1
ƒ2kL2|TIMEOUT|143|timeout|corona171|gs4-1
ƒ2kL3|FAILED|3||corona171|gs5-1
ƒ2kL4|FAILED|-9|node-failure|corona171|gs6-1
ƒ2kL5|COMPLETED|0||corona171|gs7-1
ƒ2kL6|LATER_STATE||||gs8-1
"""
QUEUES = """\
pbatch*|enabled|started|1d|1|1024
pdebug|enabled|started|1h|0|inf
pall|disabled|started|inf|1|inf
pdat|enabled|stopped (parent)|8h|1|2
"""
NODES = """\
pbatch|1000|96000|4000
pbatch,pdebug|4|384|16
|7|7|0
"""


def test_jobs_are_read():
    found = {job.id: job for job in flux.parse_jobs(JOBS + "garbage\n")}
    assert found["fM7Zq9AKHno"] == JobStatus("fM7Zq9AKHno", "gs1-1", "RUNNING", "", "corona[171-172]")
    assert found["fDkrou8xo"][1:3] == ("gs2|odd name", "PENDING") and found["f2kL6"].is_active, (
        "who may still be there is not given up"
    )
    states = {id: (job.state, job.code) for id, job in found.items() if not job.is_active}
    assert states == {
        "f2kL1": ("CANCELLED", None),
        "f2kL2": ("TIMEOUT", 143),
        "f2kL3": ("FAILED", 3),
        "f2kL4": ("NODE_FAIL", 137),
        "f2kL5": ("COMPLETED", 0),
    }


def program(folder, monkeypatch, text):
    (folder / "flux").write_text(f'#!/bin/sh\necho "$@" >> {folder}/log\n{text}\n')
    (folder / "flux").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_one_command_for_all_jobs_says_which_are_unknown(tmp_path, monkeypatch):
    (tmp_path / "jobs").write_text(JOBS)
    program(tmp_path, monkeypatch, f"cat {tmp_path}/jobs; echo 'JobID ƒ9 unknown' >&2; exit 1")
    ids = [f"f{number}" for number in range(98)]
    found = SCHEDULER.find_by_id(["fM7Zq9AKHno", "f2kL3", *ids], 60)
    assert found.jobs.keys() == {"fM7Zq9AKHno", "f2kL3"} and found.unknown == {"f9"}
    (command,) = (tmp_path / "log").read_text().splitlines()
    assert command.startswith("jobs -n --format=") and command.split().count("f9") == 1
    assert SCHEDULER.find_by_id([], 60).jobs == {} and len((tmp_path / "log").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["exit 1", "echo 'ERROR: Unable to connect to Flux: broker socket' >&2; exit 1", "sleep 5"]
)
def test_no_answer_is_not_an_empty_answer(tmp_path, monkeypatch, text):
    program(tmp_path, monkeypatch, text)
    with pytest.raises(SchedulerUnreachable, match="flux"):
        SCHEDULER.find_by_id(["f1"], 0.5)
    with pytest.raises(SchedulerUnreachable, match="flux"):
        SCHEDULER.read_queues(0.5)


def test_a_job_that_has_ended_cannot_be_cancelled_again(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, "echo 'flux-cancel: ERROR: f1: job is inactive' >&2; exit 1")
    SCHEDULER.cancel(["f1"], 60)
    program(tmp_path, monkeypatch, "echo 'flux-cancel: ERROR: f1: Operation not permitted' >&2; exit 1")
    with pytest.raises(SchedulerUnreachable, match="not permitted"):
        SCHEDULER.cancel(["f1"], 60)


@pytest.mark.parametrize(
    ("printed", "id"), [("ƒM7Zq9AKHno\n", "fM7Zq9AKHno"), ("fDkrou8xo\n", "fDkrou8xo"), ("\n", None)]
)
def test_the_id_is_the_same_in_every_locale(printed, id):
    assert SCHEDULER.parse_job_id(printed) == id


def test_queues_and_their_nodes():
    limits = flux.parse_limits(QUEUES)
    assert limits.default == "pbatch" and limits.queues["pbatch"] == QueueLimit(1, 1024, 86400)
    assert limits.queues["pdebug"] == QueueLimit(None, None, 3600)
    assert [limits.queues[name].closed for name in ("pall", "pdat")] == ["is disabled", "is stopped (parent)"]
    batch, debug = flux.parse_queues(limits, NODES)
    assert batch == QueueFacts("pbatch", True, 1, 1004, 86400, 96, 0, 4, "") and debug.most == 4
    nameless = flux.parse_limits("|enabled|started|inf|0|inf\n")
    assert flux.parse_queues(nameless, NODES) == [QueueFacts("", True, 1, 7, None, 1, 0, 0, "")]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("1.5h", 5400), ("2d", 172800), ("30s", 30), ("inf", None), ("0s", None)]
)
def test_durations(text, seconds):
    assert flux.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("-N4", "--nodes is decided by train.nodes"),
        ("-t 5", "--time-limit is decided"),
        ("-q x", "queues.NAME.partition"),
    ],
)
def test_options_that_belong_elsewhere(flag, words):
    with pytest.raises(Exception, match=words):
        site_files.load("flux", [f'scheduler.directives=["{flag}"]'])
