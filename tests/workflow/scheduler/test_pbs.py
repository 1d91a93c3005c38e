"""Answers of PBS, recorded and broken: jobs and limits."""

import json

import pytest

from workflow.config.site import Queue
from workflow.scheduler import limits, pbs
from workflow.scheduler.interface import SchedulerUnreachable

SCHEDULER = pbs.PBSScheduler()
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
    jobs = pbs.parse_qstat(json.dumps({"pbs_version": "23", "Jobs": PBS}))
    assert [job.state for job in jobs] == STATES and jobs[0].nodes == "n1,n2" and jobs[3].nodes == "n1"
    lines = [f"Job Id: {id}\n" + "".join(f"    {k} = {v}\n" for k, v in job.items()) for id, job in PBS.items()]
    folded = "\n".join(lines).replace("n1/0*8+n2/1*8", "n1/0*8+n\n\t2/1*8")
    assert pbs.parse_qstat_text(folded) == jobs
    assert pbs.parse_qstat('{"timestamp": 1}') == [] == pbs.parse_qstat("")


@pytest.mark.parametrize("script", ["exit 1", "echo 'cannot connect to server' >&2; exit 1", "sleep 5"])
def test_no_answer_is_not_an_empty_answer(tmp_path, monkeypatch, script):
    program = tmp_path / "qstat"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SchedulerUnreachable, match="qstat"):
        SCHEDULER.find_by_id(["14"], 0.3)


def queue(**said):
    return Queue(**{"nodes": (1, 4), "max_walltime": "12:00:00"} | said)


# qstat -Q -f -F json, of PBS 23.06 with a queue that routes
QUEUES = {
    "Queue": {
        "prod": {"queue_type": "Route", "enabled": "True", "started": "True", "route_destinations": "small,medium"},
        "small": {
            "queue_type": "Execution",
            "enabled": "True",
            "started": "True",
            "from_route_only": "True",
            "resources_max": {"nodect": 24, "walltime": "03:00:00"},
            "resources_min": {"nodect": 10},
        },
        "medium": {
            "queue_type": "Execution",
            "enabled": "True",
            "started": "True",
            "resources_max": {"nodect": 99, "walltime": "06:00:00"},
            "resources_min": {"nodect": 25},
        },
        "debug": {
            "queue_type": "Execution",
            "enabled": "True",
            "started": "True",
            "max_run": "[u:PBS_GENERIC=1]",
            "resources_max": {"nodect": 2, "walltime": "01:00:00"},
        },
        "shut": {"queue_type": "Execution", "enabled": "True", "started": "False"},
    }
}


@pytest.mark.parametrize(
    ("name", "said", "words"),
    [
        ("small", {"partition": "prod", "nodes": (10, 24), "max_walltime": "03:00:00"}, None),
        ("medium", {"partition": "prod", "nodes": (25, 99), "max_walltime": "06:00:00"}, None),
        ("medium", {"partition": "prod", "nodes": (20, 99), "max_walltime": "06:00:00"}, "none of them"),
        ("small", {"partition": "prod", "nodes": (10, 24), "max_walltime": "06:00:00"}, "none of them"),
        ("debug", {"nodes": (1, 2), "max_walltime": "01:00:00", "max_running": 1}, None),
        ("debug", {"nodes": (1, 2), "max_walltime": "01:00:00"}, "max_running: 1"),
        ("shut", {}, "wait, or name another"),
    ],
)
def test_a_queue_against_pbs(name, said, words):
    found = limits.find_mismatches(name, queue(**said), None, pbs.parse_limits(json.dumps(QUEUES)))
    assert [words in each.fix for each in found] == ([] if words is None else [True])


@pytest.mark.parametrize("said", ['{"Queue": {', "[]", '{"Queue": [1]}'])
def test_an_answer_of_pbs_that_cannot_be_read_is_none(monkeypatch, said):
    monkeypatch.setattr(pbs, "command_output", lambda *_: said)
    with pytest.raises(SchedulerUnreachable, match="could not be read"):
        SCHEDULER.read_limits(1.0)
