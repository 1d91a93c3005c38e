"""Slurm's answers, recorded and broken: jobs, limits and accounts."""

import stat

import pytest

from workflow.config.site import Queue
from workflow.scheduler import limits, slurm
from workflow.scheduler.interface import JobStatus, SchedulerUnreachable
from workflow.scheduler.limits import QueueLimit

SLURM = slurm.SlurmScheduler()
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
    jobs = {job.id: job for job in slurm.parse_squeue(SQUEUE + "garbage\n\n")}
    assert jobs["14"] == JobStatus("14", "gs052f16db-1", "RUNNING", "None", "n[1-2]")
    assert jobs["15"].name == "gs|odd name" and not jobs["15"].is_hopeless
    assert jobs["16"].is_active and jobs["18"].is_active, "who may still be there is not given up"
    assert not jobs["19"].is_active


def test_sacct_is_read():
    states = {job.id: (job.state, job.code) for job in slurm.parse_sacct(SACCT)}
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
    jobs = SLURM.find_by_id(["14", "23", "24", "99"], 60).jobs
    assert jobs.keys() == {"14", "23"}, "what accounting calls running, squeue would have had"
    commands(tmp_path, monkeypatch, sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert SLURM.find_by_id(["14", "23"], 60).jobs.keys() == {"14"}


@pytest.mark.parametrize("script", ["exit 1", "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1", "sleep 5"])
def test_no_answer_is_not_an_empty_answer(tmp_path, monkeypatch, script):
    commands(tmp_path, monkeypatch, squeue=script)
    with pytest.raises(SchedulerUnreachable, match="squeue"):
        SLURM.find_by_id(["14"], 0.3)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(SchedulerUnreachable, match="no such file"):
        SLURM.find_by_id(["14"], 0.3)


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
    return slurm.parse_limits(PARTITIONS, qos, accounts, "science\n")


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
    silent = slurm.parse_limits(PARTITIONS, None, None, "")
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


def test_a_poll_for_a_hundred_jobs_is_one_command(tmp_path, monkeypatch):
    """Twenty of them are forgotten by squeue: one more command for all of these."""
    ids, log = [str(number) for number in range(1000, 1100)], tmp_path / "log"
    queued = "\n".join(f"{id}|RUNNING|None|n1|gs{id}" for id in ids[20:])
    ended = "\n".join(f"{id}|COMPLETED|None|0:0|n1|gs{id}" for id in ids[:15])
    said = {"squeue": queued, "sacct": ended}
    scripts = {name: f"echo {name} >> {log}\ncat <<'END'\n{text}\nEND" for name, text in said.items()}
    commands(tmp_path, monkeypatch, **scripts)
    found = SLURM.find_by_id(ids[20:], 60)
    assert len(found.jobs) == 80 and log.read_text().split() == ["squeue"]
    found = SLURM.find_by_id(ids, 60)
    assert log.read_text().split() == ["squeue", "squeue", "sacct"]
    assert len(found.jobs) == 95 and found.unknown == frozenset(ids[15:20]), "of which neither knows anything"
    jobs = SLURM.find_by_name({f"gs{id}" for id in ids}, 60)
    assert len(jobs) == 95 and log.read_text().split().count("sacct") == 2
