"""Limits of a login session that end a driver, each with what to type."""

import subprocess
import sys

import pytest

from tests.support.corpus import ROOT
from workflow.config import site_files
from workflow.doctor import driver_limits
from workflow.doctor.driver_limits import SessionLimits, judge_limits

LOCAL, SLURM = site_files.load("local"), site_files.load("slurm")
CRON = site_files.load("slurm", ["driver.way=scrontab"])
LOGINCTL = """#!/bin/sh
case "$*" in *KillUserProcesses*) echo yes ;; *Linger*) echo {linger} ;; esac
"""


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (SessionLimits(cpu_seconds=600), "killed after 600 s of CPU time (ulimit -t), in about 48 h"),
        (SessionLimits(address_bytes=2e9), "only 2.0 GB may be mapped (ulimit -v)"),
        (SessionLimits(memory_bytes=100e6), "the session has only 100 MB (memory.max)"),
        (SessionLimits(processes=64), "only 64 processes and threads are allowed"),
    ],
)
def test_a_limit_that_ends_a_driver_is_bad(limits, said):
    found = judge_limits(limits, SLURM)
    assert found.state == "bad" and said in found.said and "driver.way=job" in found.fix
    assert "by scrontab" in judge_limits(limits, CRON).fix
    assert "another machine" in judge_limits(limits, LOCAL).fix


def test_a_session_without_low_limits_is_good():
    wide = SessionLimits(cpu_seconds=36000, address_bytes=64e9, memory_bytes=8e9, processes=4096)
    for limits in (SessionLimits(), wide):
        found = judge_limits(limits, SLURM)
        assert found.state == "ok" and "run --detach" in found.said


def test_a_logout_that_ends_everything_is_told():
    limits = SessionLimits(ends_at_logout=True)
    found = judge_limits(limits, SLURM)
    assert found.state == "bad" and "driver.way=service" in found.fix
    assert judge_limits(limits, CRON).state == "ok"
    assert judge_limits(limits, LOCAL).state == "ok" and "logout" in judge_limits(limits, LOCAL).said


@pytest.mark.parametrize(("linger", "ends"), [("no", True), ("yes", False)])
def test_logind_is_asked(tmp_path, monkeypatch, linger, ends):
    program = tmp_path / "loginctl"
    program.write_text(LOGINCTL.format(linger=linger))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver_limits.ends_at_logout() == ends
    program.unlink()
    assert not driver_limits.ends_at_logout(), "no logind"


def test_the_lowest_limit_of_all_cgroups_above_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(driver_limits, "CGROUPS", tmp_path)
    found = open("/proc/self/cgroup").read().partition("0::/")[2].partition("\n")[0]
    own = tmp_path / found
    (own / "below").mkdir(parents=True)
    (tmp_path / "memory.max").write_text("2000000\n")
    (own / "below" / "memory.max").write_text("1\n")
    assert driver_limits.read_cgroup("memory.max") == 2e6
    (tmp_path / "memory.max").write_text("max\n")
    assert driver_limits.read_cgroup("memory.max") is None


def test_doctor_reads_the_limits_of_a_shell():
    show = "from workflow.doctor import driver_limits; print(driver_limits.read_limits())"
    command = ["sh", "-c", 'ulimit -t 600; ulimit -v 3000000; exec "$@"', "sh", sys.executable, "-c", show]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert "cpu_seconds=600.0, address_bytes=3072000000.0" in done.stdout
