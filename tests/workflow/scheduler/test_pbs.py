"""Answers of PBS, recorded and broken: jobs and limits."""

import json
import os
import sys

import pytest

from workflow.config.schedulers.pbs import PBS as PBS_OPTIONS
from workflow.config.site import Queue
from workflow.scheduler import limits, pbs
from workflow.scheduler.interface import SchedulerUnreachable
from workflow.scheduler.submission import JobHead

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

# qstat and qselect as src/cmds of OpenPBS 23.06 has them, for jobs of a file
PROGRAM = """#!PYTHON
import json, os, sys
from pathlib import Path
here, (verb, *words) = Path(__file__).parent, [os.path.basename(sys.argv[0]), *sys.argv[1:]]
server = json.loads((here / "server.json").read_text())
with open(here / "asked", "a") as asked:
    asked.write(f"{verb} {' '.join(words)}\\n")
flags, past = {word for word in words if word.startswith("-")}, "-x" in words
if server.get("old") and {"-E", "-F"} & flags:
    sys.exit(print(f"{verb}: invalid option -- 'E'\\nusage:\\nqstat [-f] [-x] [job_identifier...]", file=sys.stderr) or 2)
if past and not server.get("history"):
    sys.exit(print(f"{verb}: PBS is not configured to maintain job history", file=sys.stderr))
over = lambda job: job["job_state"] == "F"
if verb == "qselect":
    wanted = words[words.index("-N") + 1] if "-N" in words else None
    chosen = [id for id, job in server["jobs"].items() if wanted in (None, job["Job_Name"]) and (past or not over(job))]
    sys.exit(print(*chosen, sep="\\n") if chosen else None)
found, said = {}, []
for id in [word for word in words if word[0].isdigit()]:
    job = server["jobs"].get(id)
    if job is None or (over(job) and not server.get("history")):
        said.append(f"qstat: Unknown Job Id {id}")
    elif over(job) and not past:
        said.append(f"qstat: {id} Job has finished, use -x or -H to obtain historical job information")
    else:
        found[id] = job
if "-E" in words:  # one request for all: an error only if there is none of them
    said = said[-1:] if not found else []
elif "json" in words:
    found = dict(list(found.items())[:1])
if server.get("mute"):
    sys.exit(0)
if "json" in words:
    text = json.dumps({"pbs_version": "23.06.06", "Jobs": found})
    print(text.replace('"job_state"', '"X": "\\\\e[0m", "job_state"') if server.get("broken") else text)
else:
    for id, job in found.items():
        print(f"Job Id: {id}", *(f"    {name} = {value}" for name, value in job.items()), "", sep="\\n")
        print("    Variable_List = A=1\\n    job_state = F")
print(*said, sep="\\n", file=sys.stderr)
sys.exit(153 if said else 0)
"""


class Server:
    """A server of which qstat and qselect tell; it counts its commands."""

    def __init__(self, place, **said):
        self.place = place
        for verb in ("qstat", "qselect"):
            (place / verb).write_text(PROGRAM.replace("PYTHON", sys.executable))
            (place / verb).chmod(0o755)
        self.say(**said)

    def say(self, **said):
        (self.place / "server.json").write_text(json.dumps(said))
        (self.place / "asked").write_text("")

    def asked(self):
        return [line.split()[0] for line in (self.place / "asked").read_text().splitlines()]


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return lambda **said: Server(tmp_path, **said)


def running(*ids):
    return {id: {"Job_Name": f"gs{id}", "job_state": "R"} for id in ids}


def ended(id, code=0):
    return {id: {"Job_Name": f"gs{id}", "job_state": "F", "Exit_status": code}}


@pytest.mark.parametrize("history", [False, True])
def test_a_poll_of_a_hundred_jobs_is_one_command(server, history):
    """And none of them is taken for dead, whatever the server remembers of others."""
    ids = [f"{k}.pbs" for k in range(100)]
    asked, scheduler = server(jobs=running(*ids), history=history), pbs.PBSScheduler()
    seen = scheduler.find_by_id(ids, 60)
    assert all(job.state == "RUNNING" for job in seen.jobs.values()) and len(seen.jobs) == 100
    assert asked.asked() == ["qstat"] and not seen.unknown


def test_thousands_of_ids_are_split(server):
    ids = [f"{k}.pbs" for k in range(4000)]
    asked = server(jobs=running(*ids))
    assert len(pbs.PBSScheduler().find_by_id(ids, 60).jobs) == 4000 and asked.asked() == ["qstat"] * 4


def test_without_a_history_a_job_that_has_ended_is_unknown(server):
    """As by default: `qstat -x` prints a note and exits with 0, which is no answer."""
    asked, scheduler = server(jobs=running("1.pbs") | ended("2.pbs")), pbs.PBSScheduler()
    seen = scheduler.find_by_id(["1.pbs", "2.pbs", "3.pbs"], 60)
    assert seen.jobs.keys() == {"1.pbs"} and seen.unknown == {"2.pbs", "3.pbs"} and scheduler.keeps_history is False
    asked.say(jobs=running("1.pbs"))
    assert scheduler.find_by_id(["1.pbs", "2.pbs"], 60).unknown == {"2.pbs"}
    assert asked.asked() == ["qstat"] * 2, "for the history nobody asks twice"


def test_with_a_history_its_end_is_told(server):
    jobs = running("1.pbs") | ended("2.pbs", -27) | ended("4.pbs", -29)
    asked, scheduler = server(jobs=jobs, history=True), pbs.PBSScheduler()
    seen = scheduler.find_by_id(["1.pbs", "2.pbs", "3.pbs", "4.pbs"], 60)
    assert {id: job.state for id, job in seen.jobs.items()} == {
        "1.pbs": "RUNNING",
        "2.pbs": "OUT_OF_MEMORY",
        "4.pbs": "TIMEOUT",
    }
    assert seen.unknown == {"3.pbs"}
    asked.say(jobs=jobs, history=True)
    assert scheduler.find_by_id(["1.pbs", "2.pbs"], 60).jobs.keys() == {"1.pbs", "2.pbs"}
    assert asked.asked() == ["qstat"]


@pytest.mark.parametrize("state", [{"mute": True}, {"mute": True, "history": True}])
def test_an_empty_answer_proves_nothing(server, state):
    server(jobs=running("1.pbs"), **state)
    seen = pbs.PBSScheduler().find_by_id(["1.pbs", "2.pbs"], 60)
    assert not seen.jobs and not seen.unknown


@pytest.mark.parametrize("fault", ["old", "broken"])
def test_a_qstat_that_knows_less_answers_in_text(server, fault):
    """Without -E, or with variables that are not JSON; the next poll asks in that form at once."""
    ids = ["1.pbs", "2.pbs", "3.pbs"]
    asked, scheduler = server(jobs=running(*ids), **{fault: True}), pbs.PBSScheduler()
    for _ in range(2):
        asked.say(jobs=running(*ids), **{fault: True})
        assert {job.state for job in scheduler.find_by_id(ids, 60).jobs.values()} == {"RUNNING"}
    assert asked.asked() == ["qstat"]


@pytest.mark.parametrize(
    ("history", "commands"), [(False, ["qselect", "qselect", "qstat"]), (True, ["qselect", "qstat"])]
)
def test_a_job_is_found_by_its_name(server, history, commands):
    many = running(*(f"{k}.pbs" for k in range(60))) | ended("77.pbs", 3)
    asked, scheduler = server(jobs=many, history=history), pbs.PBSScheduler()
    assert [job.id for job in scheduler.find_by_name({"gs7.pbs"}, 60)] == ["7.pbs"] and asked.asked() == commands
    found = scheduler.find_by_name({"gs77.pbs"}, 60)
    assert [(job.state, job.code) for job in found] == ([("FAILED", 3)] if history else [])
    assert {job.id for job in scheduler.find_by_name({"gs1.pbs", "gs2.pbs"}, 60)} == {"1.pbs", "2.pbs"}


@pytest.mark.parametrize(
    ("comment", "is_hopeless"),
    [
        ("Can Never Run: Insufficient amount of resource: ncpus (R: 64 A: 8 T: 8)", True),
        ("Can Never Run: Not enough total nodes available", True),
        ("job held, too many failed attempts to run", True),
        ("Not Running: would exceed user u's limit on resource ncpus in queue workq", False),
        ("Not Running: Queue not started.", False),
        ("Not Running: Insufficient amount of resource: ncpus (R: 4 A: 0 T: 8)", False),
    ],
)
def test_what_a_waiting_job_waits_for(comment, is_hopeless):
    job = pbs.parse_job("1.pbs", {"job_state": "H" if "held" in comment else "Q", "comment": comment})
    assert job.is_hopeless is is_hopeless and job.reason == comment
    assert not pbs.parse_job("1.pbs", {"job_state": "R", "comment": comment}).is_hopeless


@pytest.mark.parametrize(
    ("words", "action", "hint"),
    [
        ("qsub: Queue is not enabled", "wait", ""),
        ("qsub: Request not allowed: Server shutting down", "wait", ""),
        ("qsub: Maximum number of jobs already in queue", "wait", ""),
        ("qsub: would exceed complex's per-user limit of jobs in 'Q' state", "wait", ""),
        ("qsub: cannot connect to server pbs (errno=111)", "unreachable", ""),
        ("qsub: End of File", "unreachable", ""),
        ("qsub: Access to queue is denied", "refused", "acl_users"),
        ("qsub: Unauthorized Request ", "refused", "acl_hosts"),
        ("qsub: Access from host not allowed, or unknown host", "refused", "acl_hosts"),
        ("qsub: Bad UID for job execution", "refused", "root"),
        ("qsub: Bad GID for job execution", "refused", "group"),
        ("qsub: Job violates queue and/or server resource limits", "refused", "resources_max"),
        ("qsub: Job rejected by all possible destinations", "refused", "resources_max"),
        ("qsub: Unknown resource: filesystems", "refused", "select"),
        ("qsub: Unknown queue", "refused", "train.queue"),
        ("qsub: Invalid Account", "refused", "account"),
    ],
)
def test_what_a_refusal_means(words, action, hint):
    found = SCHEDULER.judge_refusal(words, None)
    assert found.action == action and hint in found.hint and bool(hint) == bool(found.hint)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_job_has_the_umask_of_its_driver(mask):
    """PBS itself takes 077, and nobody else could read the results."""
    head = JobHead("gs-1", "", None, None, 1, 1, 1, 0, 1, 600, "00:10:00", (), ())
    before = os.umask(mask)
    try:
        assert f"-W umask={mask:03o}" in SCHEDULER.render_options(head, PBS_OPTIONS(kind="pbs"))
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("code", "state"),
    [(-24, "FAILED"), (-26, "OUT_OF_MEMORY"), (-27, "OUT_OF_MEMORY"), (-28, "TIMEOUT"), (-29, "TIMEOUT")]
    + [(-1, "NODE_FAIL"), (-20, "NODE_FAIL"), (256 + 9, "CANCELLED"), (256 + 11, "FAILED"), (0, "COMPLETED")],
)
def test_what_the_exit_status_of_pbs_says(code, state):
    assert pbs.find_end_state(code) == state


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


SERVER = """Server: pbs
    server_state = Active
    server_host = pbs.site.org
    scheduling = True
    acl_roots = root@pbs.site.org
    default_queue = workq
    pbs_version = 23.06.06
"""


@pytest.mark.parametrize(
    ("more", "host", "user", "found"),
    [
        ("", "pbs", 1000, {"job history": (False, True)}),
        ("job_history_enable = True", "pbs.site.org", 0, {"job history": (False, True)}),
        ("", "login1", 1000, {"job history": (False, True), "submit host": (True, False)}),
        ("flatuid = True", "login1", 1000, {"job history": (False, True)}),
        (
            "flatuid = True\n    acl_host_enable = True\n    acl_hosts = *.else.org,\n\t-login1.site.org,*.site.org",
            "login1.site.org",
            1000,
            {"job history": (False, True), "submit host": (True, True)},
        ),
        (
            "flatuid = True\n    acl_host_enable = True\n    acl_hosts = *.site.org",
            "login1.site.org",
            1000,
            {"job history": (False, True)},
        ),
    ],
)
def test_what_a_server_says_about_itself(more, host, user, found):
    """Remarks tell if it keeps a history, takes jobs from this host, and trusts it with the user's name."""
    remarks = pbs.judge_server(pbs.parse_server(f"{SERVER}    {more}\n"), host, user)
    assert {each.what: (bool(each.fix), each.is_certain) for each in remarks} == found
    assert ("off" in remarks[0].said) == ("job_history" not in more)


@pytest.mark.parametrize(
    ("option", "name"),
    [("-W umask=077", "-W umask"), ("-Wumask=077", "-W umask"), ("-l select=2", "-l select"), ("-k doe", "-k")],
)
def test_options_have_one_name(option, name):
    assert PBS_OPTIONS.option_name(option) == name
    assert (name in PBS_OPTIONS.decided_elsewhere) == (name != "-k")
    assert PBS_OPTIONS.option_name("-W group_list=team") not in PBS_OPTIONS.decided_elsewhere


def test_a_server_that_takes_no_jobs_of_root_or_starts_none():
    quiet = SERVER.replace("scheduling = True", "scheduling = False").replace("acl_roots = root@pbs.site.org\n", "")
    assert [each.what for each in pbs.judge_server(pbs.parse_server(quiet), "pbs", 0)] == [
        "job history",
        "scheduling",
        "user",
    ]
    assert pbs.judge_server(pbs.parse_server("Job Id: 1\n    job_state = R\n"), "pbs", 0) == []


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
