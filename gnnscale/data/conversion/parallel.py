"""Ranks that convert side by side: they need only know their number and share a file system.

Each rank writes how far it is to .rank-N.json, a few times a second. The first rank waits until every work item is finished,
and gives up on a rank that has not written for SILENCE_SECONDS: a dead rank is noticed by its silence.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from gnnscale.contract.errors import UserError
from gnnscale.data.conversion.shard_notes import is_finished, read_last_note
from gnnscale.data.conversion.work_items import WorkItem
from gnnscale.machine.rank_env import Ranks

START_SECONDS = 120.0  # within which all ranks have begun
SILENCE_SECONDS = 600.0  # a rank at work writes twice a second, but a file system may take its time
LINE_SECONDS = 20.0  # between two lines of the log
RESUME = "run the same command again: what is done is kept"


class ReportProgress(Protocol):
    def __call__(self, done: float, total: float, *, rate: float, left: float | None) -> None: ...


class Heartbeat:
    """The progress of this rank, written for the other ranks; the first rank reports the progress of all.

    As a context it writes the error with which its block ends, so that the first rank ends too.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        own_items: Sequence[WorkItem],
        expected: float,
        report_progress: ReportProgress,
    ):
        self.folder, self.ranks, self.expected, self.report_progress = folder, ranks, expected, report_progress
        self.began = self.written = self.printed = time.time()
        notes = [read_last_note(folder, item.number) for item in own_items]
        self.done_before = sum(note.kept for note in notes if note)  # structures, by earlier attempts of this rank
        self.done = 0  # structures, by this attempt of this rank
        self.all_at_first = 0  # structures, by all ranks as this attempt began

    def __enter__(self) -> Heartbeat:
        self.write()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.write(**({} if error is None else {"error": (str(error) or type(error).__name__).splitlines()[0]}))

    def count_read(self) -> None:
        """Count one structure that was read."""
        self.done += 1
        if time.time() - self.written > 0.5:
            self.write()

    def write(self, **more: str) -> None:
        self.written = time.time()
        path = heartbeat_path(self.folder, self.ranks.rank)
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps({"done": self.done + self.done_before, "time": self.written} | more))
        os.replace(beside, path)
        if self.ranks.rank == 0:
            self.report()

    def report(self) -> None:
        """Report the progress of all ranks, and print a line now and then."""
        done = sum(read_heartbeat(self.folder, rank).get("done", 0) for rank in range(self.ranks.size))
        self.all_at_first = self.all_at_first or done
        rate = max(0, done - self.all_at_first) / max(self.written - self.began, 1e-3)
        left = max(0.0, self.expected - done) / rate if rate else None
        self.report_progress(done, max(done, self.expected), rate=rate, left=left)
        if self.written - self.printed > LINE_SECONDS:
            self.printed = self.written
            ahead = "" if left is None else f", about {left:,.0f} s left"
            print(f"{done:,} of about {self.expected:,.0f} structures, {rate:,.0f}/s{ahead}", flush=True)


def heartbeat_path(folder: Path, rank: int) -> Path:
    return folder / f".rank-{rank}.json"


def read_heartbeat(folder: Path, rank: int) -> dict[str, Any]:
    try:
        return json.loads(heartbeat_path(folder, rank).read_text())
    except (OSError, ValueError):
        return {}


def wait_for_ranks(items: Sequence[WorkItem], folder: Path, ranks: Ranks, heartbeat: Heartbeat) -> None:
    """Wait until the other ranks have finished their work items, then remove all heartbeats."""
    changes: dict[int, tuple[dict[str, Any], float]] = {}  # rank -> its last heartbeat, and when that was first seen
    waiting = [item.number for item in items]
    while waiting := [number for number in waiting if not is_finished(folder, number)]:
        for rank in range(1, ranks.size):
            check_rank(folder, rank, waiting[0], heartbeat.began, changes)
        time.sleep(0.5)
        heartbeat.write()
    for rank in range(ranks.size):
        heartbeat_path(folder, rank).unlink(missing_ok=True)


def check_rank(
    folder: Path, rank: int, item: int, began: float, changes: dict[int, tuple[dict[str, Any], float]]
) -> None:
    """Raise a UserError if another rank reports an error, or has been silent for too long."""
    seen, now = read_heartbeat(folder, rank), time.time()
    # An older error may be of an earlier attempt, which a rank overwrites as it begins; or of a rank that was quicker.
    recent = seen.get("time", 0) > began - 5.0
    if seen.get("error") and (recent or now - began > START_SECONDS):
        raise UserError(f"rank {rank}: {seen['error']}", RESUME, kind="data")
    if rank not in changes or seen != changes[rank][0]:
        changes[rank] = seen, now
    elif now - changes[rank][1] > SILENCE_SECONDS:
        message = f"rank {rank} has been silent for {SILENCE_SECONDS:.0f} s, and work item {item} is not finished"
        raise UserError(message, RESUME, kind="data")
