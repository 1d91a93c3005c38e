"""One thread that asks the scheduler about all jobs at once, and wakes those who wait for what it says."""

from __future__ import annotations

import threading
from collections.abc import Callable

from workflow.scheduler.query import Scheduler, Snapshot, Unreachable

SETTLED = 0.3  # s without anybody new, after which those who came together are asked about together
SLOWEST = 300.0  # s between two questions to a scheduler that does not answer


class Watch:
    """Follows ids. Nothing is asked while there is nobody to ask for."""

    def __init__(self, scheduler: Scheduler, poll: float, timeout: float, away: Callable[[str], None]):
        """`away` is told what the scheduler said instead of answering, and "" when it answers."""
        self.scheduler, self.poll, self.timeout, self.away = scheduler, poll, timeout, away
        self.followed: set[str] = set()
        self.news = threading.Condition()
        self.snapshot: Snapshot | None = None
        self.urgent, self.stopping = False, False
        threading.Thread(target=self.loop, daemon=True).start()

    def follow(self, id: str) -> None:
        with self.news:
            self.followed.add(id)
            self.news.notify_all()

    def forget(self, id: str) -> None:
        with self.news:
            self.followed.discard(id)

    def hurry(self) -> None:
        """Somebody has reason to believe that a job has ended."""
        with self.news:
            self.urgent = True
            self.news.notify_all()

    def stop(self) -> None:
        with self.news:
            self.stopping = True
            self.news.notify_all()

    def after(self, moment: float, seconds: float) -> Snapshot | None:
        """A snapshot whose query was sent after `moment`: what it lacks had its chance to be in it."""
        with self.news:
            self.news.wait_for(lambda: self.stopping or self.newer(moment), seconds)
            return self.snapshot if self.newer(moment) else None

    def newer(self, moment: float) -> bool:
        return self.snapshot is not None and self.snapshot.began > moment

    def loop(self) -> None:
        pause = self.poll
        while not self.stopping:
            with self.news:
                if not self.followed:
                    self.news.wait_for(lambda: self.stopping or self.followed)
                    self.settle()
                ids = sorted(self.followed)
                self.urgent = False
            if self.stopping:
                return
            answered = self.query(ids)
            pause = self.poll if answered else min(SLOWEST, 2 * pause)
            least = min(1.0, self.poll)  # in a hurry, but not so often that anybody would mind
            with self.news:
                self.news.wait_for(lambda: self.stopping, least)
                self.news.wait_for(lambda: self.stopping or (self.urgent and answered), pause - least)  # noqa: B023

    def settle(self) -> None:
        known = 0
        while not self.stopping and len(self.followed) > known:
            known = len(self.followed)
            self.news.wait_for(lambda: self.stopping, SETTLED)

    def query(self, ids: list[str]) -> bool:
        try:
            seen = self.scheduler.look(ids, self.timeout)
        except Exception as error:  # of any kind: without this thread every stage would wait for ever, and in silence
            self.away(str(error) if isinstance(error, Unreachable) else f"{type(error).__name__}: {error}")
            return False
        self.away("")
        with self.news:
            self.snapshot = seen
            self.news.notify_all()
        return True
