"""The display of a running study: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from workflow.run_directory import status
from workflow.run_directory.status import PlanFile, StageStatus

if TYPE_CHECKING:  # rich is imported only where there is a terminal
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table

MAX_ROWS = 12  # of the live table, besides the totals
PLAIN_SECONDS = 20.0  # between two plain lines of progress
REREAD_SECONDS = 1.5  # between two reads of the file with a stage's progress
COLOURS = {"running": "green", "failed": "red", "queued": "blue", "blocked": "yellow", "waiting": "dim"}  # by urgency
ANNOUNCED = ("queued", "running", "failed", "blocked")  # states that a plain line reports


def can_rewrite_lines(stream: TextIO) -> bool:
    """Return whether lines can be overwritten there."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colours(stream: TextIO) -> bool:
    """Return whether colours are wanted there."""
    return can_rewrite_lines(stream) and not os.environ.get("NO_COLOR")  # https://no-color.org


class ProgressDisplay:
    """The display of one run, updated a few times a second with the states of all stages."""

    def __init__(self, root: Path, plan: PlanFile):
        self.root, self.plan = root, plan
        self.started = self.printed = time.monotonic()
        self.states: dict[str, str] = {}
        self.read: dict[str, tuple[float, StageStatus]] = {}  # stage -> when its file was read, and its content
        self.live: Live | None = None
        self.banner = ""

    def __enter__(self) -> ProgressDisplay:
        if can_rewrite_lines(sys.stdout):
            from rich.live import Live

            self.live = Live(refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self, states: dict[str, str], banner: str = "") -> None:
        """Show the states that the driver knows; the progress within a stage comes from the stage's own file."""
        if banner != self.banner and self.live is None:
            self.print_line(banner or "the scheduler answers again")
        self.banner = banner
        rows = [self.row(stage, states.get(stage.id, "waiting")) for stage in self.plan.stages]
        if self.live is not None:
            self.live.update(build_table(rows, time.monotonic() - self.started, banner))
        else:
            self.print_changes(rows)

    def row(self, stage: status.RecordedStage, state: str) -> StageStatus:
        """Return the row of a stage; its file is read now and then, as it lies on a shared file system."""
        if state != "running":
            return StageStatus(stage.id, stage.kind, state, stage.folder)
        if stage.id not in self.read or time.monotonic() - self.read[stage.id][0] > REREAD_SECONDS:
            self.read[stage.id] = time.monotonic(), status.read_running(stage, self.root / stage.folder)
        return self.read[stage.id][1]

    def print_changes(self, rows: list[StageStatus]) -> None:
        """Print a line for each change of a state, and now and then the progress of what runs."""
        for row in rows:
            before, self.states[row.id] = self.states.get(row.id), row.state
            has_ended = row.state == "done" and before in ("queued", "running")
            if has_ended or (row.state != before and row.state in ANNOUNCED):
                self.print_line(f"{row.state:8} {row.id}")
        if time.monotonic() - self.printed > PLAIN_SECONDS:
            self.printed = time.monotonic()
            running = ", ".join(f"{row.id} {format_progress(row)}" for row in rows if row.state == "running")
            self.print_line(f"{format_totals(rows)}  |  {running}")

    def print_line(self, text: str) -> None:
        print(f"{format_clock(time.monotonic() - self.started)}  {text}", flush=True)


def build_table(rows: list[StageStatus], seconds: float, banner: str) -> Group:
    """Return the totals and the rows that matter now: running, failed, then the next ones."""
    from rich.console import Group
    from rich.text import Text

    urgency = list(COLOURS)
    shown = sorted((row for row in rows if row.state in COLOURS), key=lambda row: urgency.index(row.state))
    more = f"... and {len(shown) - MAX_ROWS} more   " if len(shown) > MAX_ROWS else ""
    head = Text.assemble((f"{format_totals(rows)}   {format_clock(seconds)}", "bold"))
    foot = Text(f"{more}Ctrl-C stops; the same command continues", style="dim")
    return Group(head, *([Text(banner, style="yellow")] if banner else []), build_grid(shown[:MAX_ROWS]), foot)


def build_grid(rows: list[StageStatus]) -> Table:
    """Return the rows in columns, numbers to the right."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("stage", "state"):
        grid.add_column(name)
    for name in ("progress", "loss", "left"):
        grid.add_column(name, justify="right")
    for row in rows:
        loss = f"{row.loss:.4f}" if row.loss is not None else ""
        left = format_clock(row.eta) if row.eta is not None else ""
        grid.add_row(row.id, Text(row.state, style=COLOURS[row.state]), format_progress(row), loss, left)
    return grid


def format_totals(rows: list[StageStatus]) -> str:
    """Return how many stages of each kind are done."""
    return "  ".join(f"{kind} {done}/{total}" for kind, (done, total) in status.count_done(rows).items())


def format_progress(row: StageStatus) -> str:
    """Return how much of a stage is done, in its own units."""
    return "" if row.total is None else f"{row.done:,.0f}/{row.total:,.0f}"


def format_clock(seconds: float) -> str:
    """Return 1:02 or 1:02:03."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
