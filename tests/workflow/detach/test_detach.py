"""How a driver outlives its session: scripts and entries word by word, and a scrontab that keeps its users' tables."""

import json
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest

from gnnscale.contract.exit_codes import BUSY, DONE, FAILED, INTERRUPTED, MEMORY, STOPPED, TERMINATED, USAGE
from tests.support.corpus import ROOT
from tests.support.errors import message_of
from workflow.config import site_files
from workflow.detach import cpu_limit, driver_job, driver_script, record, scrontab, sessions, start
from workflow.scheduler.interface import JobStatus

ENTRY = """# gnnscale driver-1a2b3c4d: begin
#SCRON -q workflow
#SCRON -C cron
#SCRON -t 30-00:00:00
#SCRON -A m1234
#SCRON -J driver-1a2b3c4d
#SCRON -o /scratch/run/driver.log
#SCRON --open-mode=append
*/5 * * * * /bin/sh '/scratch/a run/driver.sh'
# gnnscale driver-1a2b3c4d: end
"""
OPTIONS = ["-q workflow", "-C cron", "-t 30-00:00:00", "-A m1234"]
# As Slurm's: prints "no crontab" and fails where there is none, and replaces the whole table by a file.
SCRONTAB = """#!/bin/sh
case $1 in
    -l) [ -s {table} ] && exec cat {table}; echo "no crontab for me" >&2; exit 1 ;;
    *) ! grep -q refuse "$1" && exec cp "$1" {table}; echo "scrontab: error: Invalid qos specification" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Return the file that a stand-in for scrontab keeps its user's table in."""
    path = tmp_path / "table"
    program = tmp_path / "scrontab"
    program.write_text(SCRONTAB.format(table=path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return path


def test_an_entry_of_scrontab_is_as_the_site_wants_it(tmp_path):
    log = tmp_path / "driver.log"
    made = scrontab.render_entry("driver-1a2b3c4d", "/scratch/a run/driver.sh", log, OPTIONS)
    assert made == ENTRY.replace("/scratch/run/driver.log", str(log))


def test_other_entries_of_the_table_are_kept(table):
    table.write_text("#SCRON -q workflow\n0 3 * * * /bin/backup\n")
    before = table.read_text()
    scrontab.add_entry("driver-1a2b3c4d", ENTRY)
    assert table.read_text() == before + ENTRY
    scrontab.add_entry("driver-1a2b3c4d", ENTRY.replace("30-00", "20-00"))
    assert table.read_text() == before + ENTRY.replace("30-00", "20-00"), "one entry for one run"
    disabled = table.read_text().replace("*/5", "#DISABLED: */5")  # as Slurm does once its job was cancelled
    table.write_text(disabled)
    assert scrontab.remove_entry("driver-1a2b3c4d") and table.read_text() == before
    assert not scrontab.remove_entry("driver-1a2b3c4d")


def test_a_first_entry_and_a_refused_one(table):
    scrontab.add_entry("driver-1a2b3c4d", ENTRY)
    assert table.read_text() == ENTRY
    said = message_of(lambda: scrontab.add_entry("driver-1a2b3c4d", ENTRY.replace("workflow", "refuse")))
    assert said.startswith("scrontab refuses the entry: scrontab: error: Invalid qos") and "driver.way=tmux" in said
    assert table.read_text() == ENTRY


def test_without_scrontab_another_way_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "--set driver.way=tmux" in message_of(lambda: scrontab.add_entry("a", ENTRY))


@pytest.mark.parametrize(
    ("code", "goes_on"),
    [
        (DONE, False),
        (FAILED, False),
        (USAGE, False),
        (INTERRUPTED, False),
        (STOPPED, True),
        (MEMORY, True),
        (BUSY, True),
    ]
    + [(TERMINATED, True), (152, True)],
)
def test_an_entry_stays_while_there_is_something_to_start_again(tmp_path, code, goes_on):
    """A second driver beside a living one ends with 0, so that nobody gets a mail about it every five minutes."""
    ending = scrontab.render_ending(["touch", str(tmp_path / "removed")])
    text = driver_script.render_script(["sh", "-c", f"exit {code}"], tmp_path, {}, ending)
    done = subprocess.run(["sh", "-c", text], timeout=60)
    assert done.returncode == 0 and (tmp_path / "removed").exists() != goes_on


def test_a_driver_stopped_by_its_job_is_submitted_again(tmp_path):
    ending = driver_job.render_ending(["touch", str(tmp_path / "again")])
    for code, again in ((DONE, False), (FAILED, False), (INTERRUPTED, False), (STOPPED, True), (TERMINATED, True)):
        text = driver_script.render_script(["sh", "-c", f"exit {code}"], tmp_path, {}, ending)
        subprocess.run(["sh", "-c", text], timeout=60)
        assert (tmp_path / "again").exists() == again, code
        (tmp_path / "again").unlink(missing_ok=True)


def test_a_job_that_waits_to_run_a_driver_is_not_joined_by_a_second(tmp_path, monkeypatch):
    """But the job that runs is, since it submits its successor."""
    found, submitted = [JobStatus("7", "driver-1", "PENDING")], []
    scheduler = SimpleNamespace(find_by_name=lambda names, seconds: found)
    monkeypatch.setattr(driver_job, "SCHEDULERS", {"slurm": scheduler})
    monkeypatch.setattr(driver_job.parsl_provider, "submit", lambda script, site: submitted.append(script) or "8")
    site = site_files.load("slurm", ["driver.way=job", "driver.queue=default", "driver.walltime=02:00:00"])

    def submit():
        return driver_job.submit_job(site, tmp_path, "driver-1", tmp_path / "driver.sh", tmp_path / "driver.log")

    assert "job 7 (driver-1) waits in the queue" in message_of(submit)
    found[:] = [JobStatus("7", "driver-1", "RUNNING")]
    assert submit() == "8" and [script.request.walltime for script in submitted] == ["02:00:00"]
    assert driver_job.limit_command(site)[-1] == str(7200 - 300), (
        "before the scheduler's own notice, of which not all have one"
    )


def test_an_entry_does_not_outlive_a_change_of_way(table, tmp_path, monkeypatch):
    """It would start the finished study every five minutes, for ever."""
    name = record.driver_name(tmp_path)
    scrontab.add_entry(name, ENTRY.replace("driver-1a2b3c4d", name))
    record.write_record(tmp_path, record.DetachedDriver(way="scrontab", name=name, host="h", log="l"))
    monkeypatch.setattr(start.sessions, "start_session", lambda way, session: None)
    monkeypatch.setattr(start, "wait_for_driver", lambda *words: None)
    site = site_files.load("local", ["driver.way=nohup"])
    start.start_driver(tmp_path, site, start.Commands(["run"], ["again"], ["stop"]))
    assert table.read_text() == "" and record.read_record(tmp_path).way == "nohup"


def test_a_driver_starts_where_and_as_it_was_typed(tmp_path):
    (tmp_path / "a b").mkdir()
    environment = {
        "MINE": "two words; $(rm -rf x)\nand lines",
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURM_JOB_ID": "7",
        "TMUX": "x",
        "SSH_AUTH_SOCK": "x",
        "GITHUB_TOKEN": "secret",
        "BASH_FUNC_ml%%": "() { x; }",
        "PATH": os.environ["PATH"],
    }
    show = "import os, json; print(json.dumps([os.getcwd(), dict(os.environ)]))"
    text = driver_script.render_script([sys.executable, "-c", show], tmp_path / "a b", environment, [])
    path = driver_script.write_script(tmp_path, text)
    assert path.stat().st_mode & 0o777 == 0o600, "it may hold what is nobody else's business"
    done = subprocess.run(["env", "-i", "/bin/sh", path], capture_output=True, text=True, timeout=60, check=True)
    folder, found = json.loads(done.stdout)
    assert folder == str(tmp_path / "a b") and found["MINE"] == environment["MINE"]
    assert found["SLURM_CONF"] == "/etc/slurm.conf" and not {
        "SLURM_JOB_ID",
        "TMUX",
        "SSH_AUTH_SOCK",
        "GITHUB_TOKEN",
    } & {*found}


def test_a_service_and_a_screen_are_started_so(tmp_path):
    script, log = tmp_path / "driver.sh", tmp_path / "driver.log"
    service = sessions.session_for("service", "driver-1", script, log).command
    assert service[:5] == [
        "systemd-run",
        "--user",
        "--collect",
        "--unit=driver-1",
        f"--property=StandardOutput=append:{log}",
    ]
    assert service[-2:] == ["/bin/sh", str(script)]
    screen = sessions.session_for("screen", "driver-1", script, log).command
    assert screen == ["screen", "-dmS", "driver-1", "sh", "-c", f"/bin/sh {script} 2>&1 | tee -ai {log}"]


def test_a_way_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    session = sessions.session_for("screen", "driver-1", tmp_path, tmp_path)
    said = message_of(lambda: sessions.start_session("screen", session))
    assert said.startswith("screen is not there") and "--set driver.way=nohup" in said
    assert sessions.default_way() == "nohup"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["driver.way=tmuks"], "did you mean 'tmux'?"),
        (["driver.way=job"], "driver.queue: found null; one of default is needed"),
        (["driver.way=job", "driver.queue=defalt"], "did you mean 'default'?"),
        (["driver.way=job", "driver.queue=default", "driver.walltime=25:00:00"], "is more than queue default allows"),
        (
            ["driver.way=job", "driver.queue=default", "driver.walltime=00:05:00"],
            "is not longer than scheduler.signal_seconds",
        ),
        (["driver.way=tmux", 'driver.options=["-q x"]'], "driver.options: these are for driver.way: scrontab"),
    ],
)
def test_a_wrong_way_is_found_with_the_site(settings, said):
    assert said in message_of(lambda: site_files.load("slurm", settings))
    if settings == ["driver.way=job"]:
        assert "has no scheduler" in message_of(lambda: site_files.load("local", settings))


def test_a_copy_of_a_run_has_a_driver_of_another_name(tmp_path):
    names = {record.driver_name(tmp_path / name) for name in ("a", "b")}
    assert len(names) == 2 and all(len(name) == 15 for name in names), "the longest name that every PBS takes"


BURN = """
from workflow.cli.drive import StopRequest
stop = StopRequest()
while not stop.requested:
    pass
print(stop.why)
raise SystemExit(stop.code)
"""


def test_a_driver_stops_in_good_order_before_the_limit_of_cpu_time_kills_it():
    command = ["sh", "-c", 'ulimit -t 2; exec "$@"', "sh", sys.executable, "-c", BURN]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == STOPPED, done.stderr
    assert done.stdout == "this session's limit of CPU time of 2 s (ulimit -H -t) is reached\n"


@pytest.mark.parametrize(("hard", "soft"), [(3600, 3595), (100, 95), (8, 6), (2, 1)])
def test_a_limit_leaves_time_to_stop(monkeypatch, hard, soft):
    said = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (hard, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: said.append(limits))
    cpu_limit.leave_time_to_stop()
    assert said == [(soft, hard)]
