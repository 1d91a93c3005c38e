"""What a person sees while a study runs: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

from workflow.run_directory import status
from workflow.run_directory.status import PlanFile, StageStatus

MAX_ROWS = 12  # rows of the live table besides the totals
PLAIN_SECONDS = 20.0  # between two plain lines of progress
REREAD_SECONDS = 1.5  # between two looks at the file in which a stage tells its progress


def can_rewrite_lines(stream: TextIO) -> bool:
    """Whether lines can be written over there."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colours(stream: TextIO) -> bool:
    return can_rewrite_lines(stream) and not os.environ.get("NO_COLOR")  # https://no-color.org


class ProgressDisplay:
    """`update` is called a few times a second with the states of all stages; who looks at files is `status`."""

    def __init__(self, root: Path, plan: PlanFile):
        self.root, self.plan = root, plan
        self.begun, self.said = time.monotonic(), time.monotonic()
        self.states: dict[str, str] = {}
        self.looked: dict[str, tuple[float, StageStatus]] = {}  # stage -> when, and what its file said
        self.live, self.banner = None, ""

    def __enter__(self) -> ProgressDisplay:
        if can_rewrite_lines(sys.stdout):
            from rich.live import Live

            self.live = Live(refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self, states: dict[str, str], banner: str = "") -> None:
        """`states` is what the driver knows; progress within a stage comes from the stage's own file."""
        if banner != self.banner and self.live is None:
            print(
                f"{format_clock(time.monotonic() - self.begun)}  {banner or 'the scheduler answers again'}", flush=True
            )
        self.banner = banner
        rows = [self.row(stage, states.get(stage.id, "waiting")) for stage in self.plan.stages]
        if self.live is not None:
            self.live.update(build_table(rows, time.monotonic() - self.begun, banner))
        else:
            self.plain(rows)

    def row(self, stage: status.PlannedStage, state: str) -> StageStatus:
        if state != "running":
            return StageStatus(stage.id, stage.kind, state, stage.folder)
        if stage.id not in self.looked or time.monotonic() - self.looked[stage.id][0] > REREAD_SECONDS:
            self.looked[stage.id] = time.monotonic(), status.read_running(stage, self.root / stage.folder)
        return self.looked[stage.id][1]

    def plain(self, rows: list[StageStatus]) -> None:
        for row in rows:
            before, self.states[row.id] = self.states.get(row.id), row.state
            if row.state != before and row.state in ("queued", "running", "failed", "blocked"):
                print(f"{format_clock(time.monotonic() - self.begun)}  {row.state:8} {row.id}", flush=True)
            elif row.state == "done" and before in ("queued", "running"):
                print(f"{format_clock(time.monotonic() - self.begun)}  done     {row.id}", flush=True)
        if time.monotonic() - self.said > PLAIN_SECONDS:
            self.said = time.monotonic()
            under_way = ", ".join(f"{r.id} {format_progress(r)}" for r in rows if r.state == "running")
            print(f"{format_clock(self.said - self.begun)}  {format_totals(rows)}  |  {under_way}", flush=True)


def format_totals(rows: list[StageStatus]) -> str:
    return "  ".join(f"{kind} {done}/{total}" for kind, (done, total) in status.count_done(rows).items())


def build_table(rows: list[StageStatus], seconds: float, banner: str):
    """The rows that matter now: running, failed, then the next ones that wait."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    order = {"running": 0, "failed": 1, "queued": 2, "blocked": 3, "waiting": 4}
    shown = sorted((row for row in rows if row.state in order), key=lambda row: order[row.state])
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (
        ("stage", "left"),
        ("state", "left"),
        ("progress", "right"),
        ("loss", "right"),
        ("left", "right"),
    ):
        grid.add_column(name, justify=justify)
    colours = {
        "running": "green",
        "queued": "blue",
        "failed": "red",
        "blocked": "yellow",
        "waiting": "dim",
        "done": "cyan",
    }
    for row in shown[:MAX_ROWS]:
        loss = f"{row.loss:.4f}" if row.loss is not None else ""
        left = format_clock(row.eta) if row.eta is not None else ""
        grid.add_row(row.id, Text(row.state, style=colours[row.state]), format_progress(row), loss, left)
    more = len(shown) - MAX_ROWS
    head = Text.assemble((f"{format_totals(rows)}   {format_clock(seconds)}", "bold"))
    foot = Text((f"... and {more} more   " if more > 0 else "") + "Ctrl-C stops; the same command goes on", style="dim")
    return Group(head, *([Text(banner, style="yellow")] if banner else []), grid, foot)


def format_progress(row: StageStatus) -> str:
    if row.total is None:
        return ""
    return f"{row.done:,.0f}/{row.total:,.0f}"


def format_clock(seconds: float) -> str:
    """1:02 or 1:02:03"""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
