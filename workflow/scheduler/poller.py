"""A thread that polls the scheduler for all jobs in one query and notifies the threads that wait for the answer."""

from __future__ import annotations

import threading
from collections.abc import Callable

from workflow.scheduler.interface import Scheduler, SchedulerUnreachable, Snapshot

SETTLE_SECONDS = 0.3  # without a new job, after which all new ones are in one query
MAX_PAUSE_SECONDS = 300.0  # between two queries to a scheduler that does not answer


class SchedulerPoller:
    """Poller of the scheduler: one query for all followed jobs, and none while no job is followed."""

    def __init__(self, scheduler: Scheduler, poll_seconds: float, timeout: float, on_contact: Callable[[str], None]):
        """Start the thread. `on_contact` gets the reason when the scheduler does not answer, and "" when it does."""
        self.scheduler, self.poll_seconds, self.timeout, self.on_contact = scheduler, poll_seconds, timeout, on_contact
        self.followed: set[str] = set()
        self.news = threading.Condition()
        self.snapshot: Snapshot | None = None
        self.is_urgent, self.is_stopping = False, False
        threading.Thread(target=self.loop, daemon=True).start()

    def follow(self, id: str) -> None:
        with self.news:
            self.followed.add(id)
            self.news.notify_all()

    def forget(self, id: str) -> None:
        with self.news:
            self.followed.discard(id)

    def hurry(self) -> None:
        """Poll soon, for a caller that has reason to believe that a job has ended."""
        with self.news:
            self.is_urgent = True
            self.news.notify_all()

    def stop(self) -> None:
        with self.news:
            self.is_stopping = True
            self.news.notify_all()

    def wait_for_snapshot(self, moment: float, seconds: float) -> Snapshot | None:
        """Return a snapshot whose query was sent after `moment`: a job submitted before is missing in it only if it has ended."""
        with self.news:
            self.news.wait_for(lambda: self.is_stopping or self.is_newer_than(moment), seconds)
            return self.snapshot if self.is_newer_than(moment) else None

    def is_newer_than(self, moment: float) -> bool:
        return self.snapshot is not None and self.snapshot.began > moment

    def loop(self) -> None:
        pause = self.poll_seconds
        while not self.is_stopping:
            with self.news:
                if not self.followed:
                    self.news.wait_for(lambda: self.is_stopping or self.followed)
                    self.settle()
                ids = sorted(self.followed)
                self.is_urgent = False
            if self.is_stopping:
                return
            answered = self.poll(ids)
            pause = self.poll_seconds if answered else min(MAX_PAUSE_SECONDS, 2 * pause)
            shortest = min(1.0, self.poll_seconds)  # also if it is urgent, to spare the scheduler
            with self.news:
                self.news.wait_for(lambda: self.is_stopping, shortest)
                self.news.wait_for(lambda: self.is_stopping or (self.is_urgent and answered), pause - shortest)  # noqa: B023

    def settle(self) -> None:
        """Wait until no new job has been added for a moment."""
        count = 0
        while not self.is_stopping and len(self.followed) > count:
            count = len(self.followed)
            self.news.wait_for(lambda: self.is_stopping, SETTLE_SECONDS)

    def poll(self, ids: list[str]) -> bool:
        """Query the scheduler once; return whether it answered."""
        try:
            snapshot = self.scheduler.find_by_id(ids, self.timeout)
        except Exception as error:  # of any kind: without this thread every stage would wait for ever, silently
            is_known = isinstance(error, SchedulerUnreachable)
            self.on_contact(str(error) if is_known else f"{type(error).__name__}: {error}")
            return False
        self.on_contact("")
        with self.news:
            self.snapshot = snapshot
            self.news.notify_all()
        return True
