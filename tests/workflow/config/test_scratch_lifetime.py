"""Plans warn in time of results that a site's file system will delete, and of no others."""

import os
import time

import pytest

from tests.workflow.cli.test_commands import call
from workflow.config import scratch_lifetime, site_files

DAY = 86400


def site(days=50, scratch=None):
    asked = [f"filesystems.purge_days={days}"] if days else []
    return site_files.load("slurm", [*asked, *([f"filesystems.scratch={scratch}"] if scratch else [])])


def aged(path, read, written):
    path.write_text("x")
    now = time.time()
    os.utime(path, (now - read * DAY, now - written * DAY))
    return path


@pytest.mark.parametrize(
    ("read", "written", "words"),
    [(1, 1, None), (39, 60, None), (60, 39, None), (41, 41, "in 9 days"), (60, 60, "today or any time now")],
)
def test_what_nobody_has_touched_for_long(tmp_path, read, written, words):
    paths = [aged(tmp_path / "new", 0, 0), aged(tmp_path / "old", read, written), tmp_path / "absent"]
    said = scratch_lifetime.purge_warnings(paths, tmp_path, site())
    assert [words in line and line.startswith("old has not been touched") for line in said] == (
        [] if words is None else [True]
    )


def test_where_nothing_is_removed_nothing_is_said(tmp_path):
    old = aged(tmp_path / "old", 99, 99)
    assert scratch_lifetime.purge_warnings([old], tmp_path, site(days=None)) == []
    assert scratch_lifetime.purge_warnings([old], tmp_path, site(scratch=tmp_path / "elsewhere")) == []
    assert scratch_lifetime.purge_warnings([old], tmp_path, site(scratch=tmp_path.parent))
    assert scratch_lifetime.purge_warnings([old], tmp_path, site(scratch="$NOT_SET_HERE")), (
        "the variable is not set here, so it may be this directory"
    )


def test_a_study_that_lasts_longer_than_its_results(tmp_path):
    assert scratch_lifetime.purge_warnings([], tmp_path, site(), 39 * DAY) == []
    (said,) = scratch_lifetime.purge_warnings([], tmp_path, site(), 45 * DAY)
    assert "45 days" in said and "50" in said


@pytest.mark.slow
def test_plan_tells_of_it(tmp_path):
    words = ("plan", "--site", "slurm", "--study", "smoke", "--root", str(tmp_path / "run"))
    assert "warning" not in call(*words, "--set", "filesystems.purge_days=30").stdout
    slow = call(
        *words,
        "--set",
        "filesystems.purge_days=1",
        "--set",
        "node.start_seconds=90000",
        "--set",
        "queues.default.max_walltime=48:00:00",
    ).stdout
    assert "warning: the rest is expected to take" in slow
