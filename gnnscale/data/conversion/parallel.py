"""The lots of a conversion on several ranks, which need only know their number and share a file system.

Each rank takes its lots and says how far it is in .rank-N.json; the first then waits until every lot is at its end.
Who dies is missed: the first gives up on a rank that says nothing for SILENCE seconds.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from gnnscale.contract.files import BadFile
from gnnscale.data.conversion import work_items
from gnnscale.data.conversion.work_items import Job, Lot
from gnnscale.machine.rank_env import Ranks, ranks

START = 120.0  # seconds within which all ranks have begun
SILENCE = 600.0  # seconds; a rank at work speaks twice a second, but a file system may take its time
LINE = 20.0  # seconds between lines for people


class Lost(BadFile):
    """Another rank has failed or gone."""

    hint = "run the same command again: what is done is kept"


class Speaker:
    """How far this rank is, told to the others and, by the first, to whoever watches."""

    def __init__(self, folder: Path, me: Ranks, expected: float, progress: Callable[..., None]):
        self.folder, self.me, self.expected, self.progress = folder, me, expected, progress
        self.began = self.spoke = self.lined = time.time()
        self.done = self.before = self.at_first = 0  # structures: by this rank, before it was started; by all, then
        self.tell()

    def read(self, count: int) -> None:
        self.done += count
        if time.time() - self.spoke > 0.5:
            self.tell()

    def tell(self, **more: str) -> None:
        self.spoke = time.time()
        path = voice(self.folder, self.me.rank)
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps({"done": self.done + self.before, "time": self.spoke} | more))
        os.replace(beside, path)
        if self.me.rank == 0:
            self.publish()

    def publish(self) -> None:
        said = [heard(self.folder, rank) for rank in range(self.me.size)]
        done = sum(each.get("done", 0) for each in said)
        self.at_first = self.at_first or done
        rate = max(0, done - self.at_first) / max(self.spoke - self.began, 1e-3)
        left = max(0.0, self.expected - done) / rate if rate else None
        self.progress(done, max(done, self.expected), rate=rate, left=left)
        if self.spoke - self.lined > LINE:
            self.lined = self.spoke
            ahead = "" if left is None else f", about {left:,.0f} s left"
            print(f"{done:,} of about {self.expected:,.0f} structures, {rate:,.0f}/s{ahead}", flush=True)


def voice(folder: Path, rank: int) -> Path:
    return folder / f".rank-{rank}.json"


def heard(folder: Path, rank: int) -> dict:
    try:
        return json.loads(voice(folder, rank).read_text())
    except (OSError, ValueError):
        return {}


def convert(job: Job, mine: list[Lot], folder: Path, expected: float, progress: Callable[..., None]) -> None:
    """Returns, on the first rank, when all of `mine` are at their end; on another when its share of them is."""
    me = ranks()
    shares = work_items.divided([lot.structures for lot in mine], me.size)
    share = [mine[k] for k in shares[me.rank]]
    speaker = Speaker(folder, me, expected, progress)
    earlier = [work_items.last_note(folder, lot.number) for lot in share]
    speaker.before = sum(note.kept for note in earlier if note)
    try:
        for lot in share:
            work_items.convert(job, lot, folder, speaker.read)
    except BaseException as error:
        speaker.tell(error=(str(error) or type(error).__name__).splitlines()[0])
        raise
    speaker.tell()
    if me.rank == 0:
        wait(mine, folder, me, speaker)
        for rank in range(me.size):
            voice(folder, rank).unlink(missing_ok=True)


def wait(mine: list[Lot], folder: Path, me: Ranks, speaker: Speaker) -> None:
    """Until the other ranks' lots are there."""
    last: dict[int, tuple[dict, float]] = {}
    waiting = [lot.number for lot in mine]
    while True:
        waiting = [number for number in waiting if not at_end(folder, number)]
        if not waiting:
            return
        for rank in range(1, me.size):
            said, now = heard(folder, rank), time.time()
            # An older error may be of an earlier attempt, which a rank takes back as it begins; or of one that was quicker.
            recent = said.get("time", 0) > speaker.began - 5.0
            if said.get("error") and (recent or now - speaker.began > START):
                raise Lost(f"rank {rank}: {said['error']}")
            if rank not in last or said != last[rank][0]:
                last[rank] = said, now
            elif now - last[rank][1] > SILENCE:
                raise Lost(f"rank {rank} has said nothing for {SILENCE:.0f} s, and lot {waiting[0]} is not done")
        time.sleep(0.5)
        speaker.tell()


def at_end(folder: Path, number: int) -> bool:
    last = work_items.last_note(folder, number)
    return last is not None and last.done
