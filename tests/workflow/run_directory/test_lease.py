"""One driver at a time in a run directory: with others suspended, dead, on another host, or without locks."""

import errno
import fcntl
import json
import os
import time

import pytest

from gnnscale.contract import files
from gnnscale.contract.errors import UserError
from workflow.run_directory import lease
from workflow.run_directory.lease import Lease

OTHER = {"host": "elsewhere", "pid": 7, "since": 1e9}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(files, "LOCK_TRIES", 1)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.0)


def left(root, holder=OTHER, silent=1e6):
    path = root / "driver.lease"
    path.write_text(json.dumps(holder))
    os.utime(path, (time.time() - silent,) * 2)
    return path


def refused(root):
    with pytest.raises(UserError) as caught:
        Lease(root).take()
    return str(caught.value)


def test_a_suspended_driver_on_another_host_is_not_robbed(tmp_path):
    """A driver that holds the lock is not dead, however long it has been silent."""
    with open(left(tmp_path)) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "on host elsewhere, pid 7" in (said := refused(tmp_path)) and "if that host is gone, remove" in said
        assert lease.live_driver(tmp_path) == OTHER
    assert lease.live_driver(tmp_path) is None
    Lease(tmp_path).take()


def test_where_locks_do_not_reach_the_files_time_decides(tmp_path):
    """A free lock does not mean that no driver works there."""
    left(tmp_path, silent=lease.STALE_SECONDS / 4)
    assert "on host elsewhere" in refused(tmp_path) and lease.live_driver(tmp_path) == OTHER


def test_a_dead_drivers_number_may_be_another_process_now(tmp_path):
    mine = Lease(tmp_path)
    mine.take()
    assert lease.live_driver(tmp_path) == lease.read_holder(mine.path)
    mine.file.close()  # as a death does; and this process, whose number it has, goes on
    assert lease.live_driver(tmp_path) is None
    Lease(tmp_path).take()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = refused(tmp_path)
    assert f"files cannot be locked here ({os.strerror(number).lower()})" in said and "--root DIR" in said


def test_who_was_taken_for_dead_notices(tmp_path):
    mine = Lease(tmp_path)
    mine.take()
    mine.renew()
    path = left(tmp_path)
    with pytest.raises(UserError, match="another driver has taken over, on host elsewhere, pid 7"):
        mine.renew()
    mine.release()
    assert json.loads(path.read_text()) == OTHER, "and leaves it the other's"


def test_a_file_server_that_is_away_for_a_moment(tmp_path, monkeypatch):
    mine = Lease(tmp_path)
    mine.take()

    def away(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "utime", away)
    mine.renew()
    monkeypatch.undo()
    mine.release()
    assert lease.read_holder(mine.path) is None


def test_it_is_renewed_every_few_seconds_and_no_more_often(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 5.0)
    mine, times, clock = Lease(tmp_path), [], [100.0]
    mine.take()
    monkeypatch.setattr(os, "utime", times.append)
    monkeypatch.setattr(lease.time, "monotonic", lambda: clock[0])
    for tenth in range(200):  # of a second
        clock[0] = 100.0 + tenth / 10
        mine.renew()
    assert 3 <= len(times) <= 4


def test_a_look_does_not_keep_a_driver_out(tmp_path, monkeypatch):
    """`status` holds the lock for a moment."""
    monkeypatch.setattr(files, "LOCK_TRIES", 20)
    left(tmp_path)
    looking = open(tmp_path / "driver.lease")
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(lease.time, "sleep", lambda _: looking.close())
    Lease(tmp_path).take()


def test_a_request_to_stop_reaches_the_driver_that_it_names_and_no_later_one(tmp_path):
    mine = Lease(tmp_path)
    mine.take()
    assert not mine.is_told_to_stop()
    lease.ask_to_stop(tmp_path, OTHER)
    assert not mine.is_told_to_stop(), "left over from an earlier driver"
    lease.ask_to_stop(tmp_path, lease.live_driver(tmp_path))
    assert mine.is_told_to_stop()
