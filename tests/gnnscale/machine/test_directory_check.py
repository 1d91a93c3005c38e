"""The check of a directory, against directories with one fault each."""

import errno
import fcntl
import os
import time

import pytest

from gnnscale.machine import directory_check


def test_a_good_directory_passes_and_is_left_empty(tmp_path):
    assert directory_check.find_fault(tmp_path) == "" and abs(directory_check.measure_clock_lead(tmp_path)) < 20
    assert list(tmp_path.iterdir()) == []
    room = directory_check.measure_free_space(tmp_path)
    assert room.bytes == os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize


@pytest.mark.parametrize(
    ("verb", "call"), [("lock", "flock"), ("rename", "replace"), ("link", "link"), ("write", "fsync")]
)
def test_a_failing_call_is_named(tmp_path, monkeypatch, verb, call):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl if call == "flock" else os, call, refuse)
    assert directory_check.find_fault(tmp_path) == f"cannot {verb} a file: function not implemented"
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_directory(tmp_path):
    assert directory_check.find_fault(tmp_path / "absent") == "cannot write a file: no such file or directory"


@pytest.mark.parametrize("ahead", [40.0, -40.0])
def test_a_clock_that_differs(tmp_path, monkeypatch, ahead):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead)
    assert directory_check.measure_clock_lead(tmp_path) == pytest.approx(ahead, abs=20)


@pytest.mark.parametrize(
    ("cgroup", "limits", "gigabytes"),
    [
        ("0::/job/step\n", {}, 64),
        ("0::/job/step\n", {"job/memory.max": "16000000000\n", "job/step/memory.max": "max\n"}, 16),
        ("0::/job/step\n", {"job/memory.max": "32000000000", "job/step/memory.max": "8000000000"}, 8),
        ("0::/job\n", {"job/memory.max": "99000000000"}, 64),
        ("5:cpu,memory:/slurm/job\n1:pids:/x\n", {"memory/slurm/job/memory.limit_in_bytes": "4000000000"}, 4),
    ],
)
def test_memory_is_what_the_job_may_have(tmp_path, cgroup, limits, gigabytes):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:       62500000 kB\nMemFree: 1 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, said in limits.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(said)
    assert directory_check.read_memory_limit(tmp_path / "proc", tmp_path / "cgroup") == gigabytes * 10**9


def test_memory_of_this_process():
    assert 2**20 < directory_check.read_memory_limit() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
