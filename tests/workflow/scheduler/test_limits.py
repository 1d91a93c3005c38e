"""Recorded limits of schedulers, compared with what a site's file says."""

import json

import pytest

from workflow.config.site import Queue
from workflow.scheduler import limits, query
from workflow.scheduler.limits import QueueLimit, SchedulerLimits

# scontrol show partition --oneliner; sacctmgr -nP show qos / assoc / user, of Slurm 22.05 and 24.05
PARTITIONS = """PartitionName=batch AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=YES QoS=N/A DefaultTime=NONE \
MaxNodes=UNLIMITED MaxTime=2-00:00:00 MinNodes=0 LLN=NO Nodes=n[1-9] State=UP TotalCPUs=72 TotalNodes=9
PartitionName=gpu AllowGroups=ALL AllowAccounts=science,art AllowQos=ALL Default=NO QoS=gpulimit MaxNodes=8 \
MaxTime=UNLIMITED MinNodes=2 Nodes=g[1-16] State=UP TotalCPUs=1024 TotalNodes=16
PartitionName=old AllowAccounts=ALL Default=NO QoS=N/A MaxNodes=UNLIMITED MaxTime=1-00:00:00 MinNodes=1 State=DRAIN TotalNodes=3
"""
QOS = """normal|||||
debug|00:30:00|cpu=64,node=2||1|2
gpulimit|1-00:00:00|node=4||3|20
"""
QUICK = {"partition": "batch", "qos": "debug", "nodes": (1, 2), "max_walltime": "00:30:00", "max_running": 1}
ACCOUNTS = "science|debug,normal|\nart|normal|\nscience|gpulimit|\n"


def known(accounts=ACCOUNTS, qos=QOS):
    return limits.parse_slurm(PARTITIONS, qos, accounts, "science\n")


def queue(**said):
    return Queue(**{"nodes": (1, 4), "max_walltime": "12:00:00"} | said)


def test_slurm_is_understood():
    found = known()
    assert found.default == "batch" and found.default_account == "science"
    assert found.queues["batch"] == QueueLimit(None, 9, 172800)
    assert found.queues["gpu"] == QueueLimit(2, 4, 86400, 3, 20, accounts=("science", "art")), "by its QOS too"
    assert found.queues["old"].closed == "is drain"
    assert found.qos["debug"] == QueueLimit(None, 2, 1800, 1, 2)
    assert found.accounts == {"science": ("debug", "normal", "gpulimit"), "art": ("normal",)}


@pytest.mark.parametrize(
    ("name", "said", "field", "words"),
    [
        ("batch", {}, None, ""),
        ("any", {"partition": ""}, None, ""),
        ("any", {"partition": "", "nodes": (1, 10)}, "nodes", "nodes: [1, 9]"),
        ("any", {"partition": "", "nodes": (10, 20)}, "nodes", "remove this queue"),
        ("batc", {}, "partition", "did you mean 'batch'?"),
        ("batch", {"max_walltime": "49:00:00"}, "max_walltime", 'max_walltime: "48:00:00"'),
        ("old", {"nodes": (1, 3)}, "", "wait, or name another"),
        ("gpu", {"nodes": (2, 4), "max_running": 3}, None, ""),
        ("gpu", {"nodes": (1, 4), "max_running": 3}, "nodes", "nodes: [2, 4]"),
        ("gpu", {"nodes": (2, 4)}, "max_running", "max_running: 3"),
        ("quick", QUICK, None, ""),
        ("quick", QUICK | {"max_walltime": "01:00:00"}, "max_walltime", '"00:30:00"'),
        ("quick", {"partition": "batch", "qos": "dbug"}, "qos", "did you mean 'debug'?"),
    ],
)
def test_a_queue_against_slurm(name, said, field, words):
    found = limits.find_mismatches(name, queue(**said), "science", known())
    assert [each.field for each in found] == ([] if field is None else [field])
    assert not found or words in found[0].fix


def test_an_account_that_may_not():
    (found,) = limits.find_mismatches("gpu", queue(nodes=(2, 4), max_running=3), "music", known())
    assert "account music may not use it" in found.found and "science" in found.fix
    (found,) = limits.find_mismatches("quick", queue(**QUICK), "art", known())
    assert "may not use the QOS debug" in found.found


def test_nothing_is_concluded_from_silence():
    silent = limits.parse_slurm(PARTITIONS, None, None, "")
    assert silent.qos is None and silent.accounts is None
    assert limits.find_mismatches("quick", queue(partition="batch", qos="whatever"), "whoever", silent) == []


@pytest.mark.parametrize(
    ("given", "required", "accounts", "good", "words"),
    [
        ("science", True, ACCOUNTS, True, ""),
        ("sciense", True, ACCOUNTS, False, "did you mean 'science'?"),
        ("sciense", True, "", False, "you have none here"),
        (None, True, ACCOUNTS, False, "--set account=science"),
        (None, False, ACCOUNTS, True, ""),
        ("any", True, None, None, ""),
    ],
)
def test_accounts(given, required, accounts, good, words):
    found, _, fix = limits.check_account(given, required, known(accounts))
    assert found is good and words in fix


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
    found = limits.find_mismatches(name, queue(**said), None, limits.parse_pbs(json.dumps(QUEUES)))
    assert [words in each.fix for each in found] == ([] if words is None else [True])


def test_what_is_tighter_counts():
    one, other = QueueLimit(1, 8, 100, None, 5), QueueLimit(2, None, 50, 3, 9)
    assert limits.stricter_limit(one, other) == QueueLimit(2, 8, 50, 3, 5)
    assert limits.find_mismatches("x", queue(), None, SchedulerLimits({"x": QueueLimit()}, "")) == []


@pytest.mark.parametrize("said", ['{"Queue": {', "[]", '{"Queue": [1]}'])
def test_an_answer_of_pbs_that_cannot_be_read_is_none(monkeypatch, said):
    monkeypatch.setattr(query, "command_output", lambda *_: said)
    with pytest.raises(query.SchedulerUnreachable, match="could not be read"):
        limits.query_pbs(1.0)
