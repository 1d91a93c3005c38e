"""What all that deals with the jobs of one run directory shares: the directory, the journal, the screen, the wish to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from gnnscale.contract import files
from workflow.config.site import SiteConfig
from workflow.jobs.outcome import Exit, Outcome
from workflow.plan.stage import Stage
from workflow.run_directory.attempt import Interrupted
from workflow.run_directory.journal import Journal, Known
from workflow.scheduler import query
from workflow.scheduler.query import Seen

NAP = 0.5  # s between two looks at files
CLOSED = "closed"  # in an attempt's directory: should its job begin in spite of all, it ends at once
DISK_FULL = Outcome("disk-full", "no space left on device", "free some space, then type the same command again")


class Office:
    """Where jobs are written down, and told of."""

    def __init__(self, root: Path, site: SiteConfig, site_name: str, log: Journal, say: Callable[..., None]):
        self.root, self.site, self.site_name, self.log, self.say = root, site, site_name, log, say
        self.scheduler = query.KINDS[site.scheduler.kind]
        self.stopping = threading.Event()
        self.submitting = threading.Lock()  # one command at a time of those that must not overlap
        self.out_of_reach = False

    def attempt(self, job: Known, id: str) -> Path:
        folder, number = job.stages[id]
        return self.root / folder / "attempts" / str(number)

    def exit_of(self, job: Known, id: str) -> Exit | None:
        try:
            return files.read_model(self.attempt(job, id) / "exit.json", Exit)
        except files.BadFile:
            return None

    def close(self, job: Known, *ids: str) -> None:
        """Should it begin in spite of all, it ends at once."""
        for id in ids or job.stages:
            try:
                self.attempt(job, id).mkdir(parents=True, exist_ok=True)
                (self.attempt(job, id) / CLOSED).touch()
            except OSError:
                pass  # a full disk; the stage's lock is there too

    def note_end(self, id: str, job: Known, ended: Outcome) -> None:
        folder, number = job.stages[id]
        self.log.note(
            "ended",
            id,
            name=job.name,
            job=job.id,
            kind=ended.kind,
            message=ended.message,
            folder=folder,
            attempt=number,
            progress=progress(self.root / folder),
        )

    def tell(self, stages: list[Stage], seen: Seen) -> None:
        """To the screen, and to whoever reads the journal."""
        for stage in stages:
            self.say(stage.id, "running" if seen.state == "RUNNING" else "queued")
        self.log.note("job", stages[0].id, name=seen.name, state=seen.state, reason=seen.reason, nodes=seen.nodes)

    def away(self, message: str) -> None:
        """The scheduler does not answer; "": it does, again."""
        if bool(message) != self.out_of_reach:
            self.out_of_reach = bool(message)
            self.log.note("unreachable" if message else "reachable", message=message)
            self.say("", message)

    def check(self) -> None:
        if self.stopping.is_set():
            raise Interrupted("the driver is stopping")

    def sleep(self, seconds: float) -> None:
        self.stopping.wait(seconds)
        self.check()


def progress(folder: Path) -> float:
    """What cannot be lost any more: the last step of a training, or so many shards of a conversion."""
    steps = (int(p.name[5:]) for p in (folder / "checkpoints").glob("step-*") if p.name[5:].isdigit())
    return max(steps, default=sum(1 for _ in (folder / "lots").glob("*.json")))
