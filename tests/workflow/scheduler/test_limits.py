"""Limits that a scheduler reports, compared with each other."""

from workflow.config.site import Queue
from workflow.scheduler import limits
from workflow.scheduler.limits import QueueLimit, SchedulerLimits


def test_what_is_tighter_counts():
    one, other = QueueLimit(1, 8, 100, None, 5), QueueLimit(2, None, 50, 3, 9)
    assert limits.stricter_limit(one, other) == QueueLimit(2, 8, 50, 3, 5)
    assert (
        limits.find_mismatches(
            "x", Queue(nodes=(1, 4), max_walltime="12:00:00"), None, SchedulerLimits({"x": QueueLimit()}, "")
        )
        == []
    )
