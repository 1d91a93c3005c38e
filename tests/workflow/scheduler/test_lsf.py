"""Answers of LSF, as its documentation and public logs show them. No LSF has run these."""

import json
from pathlib import Path

import pytest

from workflow.config import site_files
from workflow.jobs import parsl_provider
from workflow.jobs.parsl_provider import JobScript
from workflow.jobs.requests import Request
from workflow.scheduler import lsf
from workflow.scheduler.interface import JobStatus, SchedulerUnreachable
from workflow.scheduler.limits import QueueLimit
from workflow.scheduler.lsf import LSFScheduler
from workflow.scheduler.queue_facts import QueueFacts

SCHEDULER = LSFScheduler()


def record(id, stat, code="", why="", pending="", hosts=""):
    names = ("JOBID", "STAT", "EXIT_CODE", "EXIT_REASON", "PEND_REASON", "EXEC_HOST", "JOB_NAME")
    return dict(zip(names, (id, stat, code, why, pending, hosts, f"gs{id}")))


RECORDS = [
    record("1", "RUN", hosts="16*hostA:16*hostB"),
    record("2", "PEND", pending=" Not enough job slot(s): 3 hosts;"),
    record("3", "DONE", hosts="tbi-cn019:tbi-cn019"),
    record("4", "EXIT", "140", "TERM_RUNLIMIT: job killed after reaching LSF run time limit"),
    record("5", "EXIT", "130", "TERM_OWNER: job killed by owner"),
    record("6", "EXIT", "137", "TERM_MEMLIMIT: job killed after reaching LSF memory usage limit"),
    record("7", "EXIT", "3"),
    record("8", "UNKWN", hosts="hostA"),
    record("9", "ZOMBI", hosts="hostA"),
    record("10", "LATER", hosts="hostA"),
    {"JOBID": "11", "ERROR": "Job <11> is not found"},
]
BJOBS = json.dumps({"COMMAND": "bjobs", "JOBS": len(RECORDS), "RECORDS": RECORDS})
BQUEUES = """\
QUEUE: normal
  -- For normal low priority jobs, running only if hosts are lightly loaded.  This is the default queue.

PARAMETERS/STATISTICS
PRIO NICE STATUS          MAX JL/U JL/P JL/H NJOBS  PEND   RUN SSUSP USUSP  RSV PJOBS
 30    0  Open:Active       -    -    -    -     0     0     0     0     0    0     0
Interval for a host to accept two jobs is 0 seconds

DEFAULT LIMITS:
 RUNLIMIT
 60.0 min

MAXIMUM LIMITS:
 RUNLIMIT
 1440.0 min of hostA

USERS: all
HOSTS:  all

------------------------------------------------------------------------------

QUEUE: night
  -- at night

PARAMETERS/STATISTICS
PRIO NICE STATUS          MAX JL/U JL/P JL/H NJOBS  PEND   RUN SSUSP USUSP  RSV PJOBS
 20    0  Open:Inact_Win    -    -    -    -     0     0     0     0     0    0     0

USERS: all
HOSTS:  all
"""
BHOSTS = """\
HOST_NAME          STATUS       JL/U    MAX  NJOBS    RUN  SSUSP  USUSP    RSV
hostA              ok              -     32      2      2      0      0      0
hostB              closed_Full     -     16     16     16      0      0      0
hostC              unavail         -      8      0      0      0      0      0
"""


def test_jobs_are_read():
    found = {job.id: job for job in lsf.parse_jobs(BJOBS)}
    assert found["1"] == JobStatus("1", "gs1", "RUNNING", "", "hostA,hostB") and "11" not in found
    assert found["2"].state == "PENDING" and found["2"].reason.startswith("Not enough job slot")
    assert found["8"].is_active and found["10"].is_active, "who may still be there is not given up"
    ended = [(found[id].state, found[id].code) for id in ("3", "4", "5", "6", "7", "9")]
    assert ended == [
        ("COMPLETED", 0),
        ("TIMEOUT", 140),
        ("CANCELLED", 130),
        ("OUT_OF_MEMORY", 137),
        ("FAILED", 3),
        ("NODE_FAIL", None),
    ]
    assert lsf.parse_jobs("") == []


def program(folder, monkeypatch, name, text):
    (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {folder}/log\n{text}\n')
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_one_command_for_all_jobs(tmp_path, monkeypatch):
    (tmp_path / "jobs").write_text(BJOBS)
    program(tmp_path, monkeypatch, "bjobs", f"cat {tmp_path}/jobs")
    found = SCHEDULER.find_by_id(["1", *map(str, range(50, 150))], 60)
    assert found.jobs.keys() == {"1"} and len(found.unknown) == 100
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    program(tmp_path, monkeypatch, "bjobs", "echo 'No job found' >&2; exit 255")
    assert SCHEDULER.find_by_id(["1"], 60).unknown == {"1"}


@pytest.mark.parametrize("text", ["exit 1", "echo 'LSF is down. Please wait ...' >&2; exit 255", "sleep 5", "echo '{'"])
def test_no_answer_is_not_an_empty_answer(tmp_path, monkeypatch, text):
    program(tmp_path, monkeypatch, "bjobs", text)
    with pytest.raises(SchedulerUnreachable, match="bjobs"):
        SCHEDULER.find_by_id(["1"], 0.5)


def test_queues_and_their_hosts():
    limits = lsf.parse_limits(BQUEUES)
    assert limits.default == "normal" and limits.queues["normal"] == QueueLimit(seconds=86400)
    assert limits.queues["night"].closed == "is inact_win"
    assert lsf.parse_queues(limits, BHOSTS) == [QueueFacts("normal", True, 1, 2, 86400, 16, 0, 0, "")]


@pytest.mark.parametrize(
    ("words", "action", "hint"),
    [
        ("Cannot connect to LSF. Please wait ...", "unreachable", ""),
        ("Pending job threshold reached. Retrying in 60 seconds...", "wait", ""),
        ("normal: Queue has been closed", "wait", ""),
        ("RUNLIMIT: Cannot exceed queue's hard limit(s)", "refused", "max_walltime"),
        ("nope: No such queue", "refused", "queues"),
    ],
)
def test_a_refusal_is_understood(words, action, hint):
    found = SCHEDULER.judge_refusal(f"{words}. Job not submitted.", None)
    assert found.action == action and hint in found.hint


def test_the_script_is_read_from_standard_input(tmp_path, monkeypatch):
    """LSF looks for options only there. Nodes that failed are left out, and no path is in a directive."""
    site = site_files.load("lsf", ["node.cores=32", "account=me"])
    request = Request(("x",), "default", 2, 2, 1, 1, 3600, 1, 60.0)
    script = JobScript(request, "gs-1", tmp_path, "true", ("hostX",))
    program(tmp_path, monkeypatch, "bsub", f"cat > {tmp_path}/seen; echo 'Job <42> is submitted to queue <normal>.'")
    assert parsl_provider.submit(script, site) == "42"
    seen = (tmp_path / "seen").read_text()
    assert seen == Path(tmp_path / "job.sh").read_text() and str(tmp_path) not in seen
    lines = seen.splitlines()
    for line in (
        "-J gs-1",
        "-W 60",
        "-n 64",
        '-R "span[ptile=32]"',
        "-R \"select[hname!='hostX']\"",
        "-P me",
        "-o job.out",
    ):
        assert f"#BSUB {line}" in lines, seen
    assert sum(line.startswith(("#BSUB -o", "#BSUB -e")) for line in lines) == 1
    program(tmp_path, monkeypatch, "bsub", "echo 'nope: No such queue. Job not submitted.' >&2; exit 255")
    with pytest.raises(parsl_provider.JobRefused, match="bsub refuses the job: nope: No such queue"):
        parsl_provider.submit(script, site)
