"""What a person sees while a study runs: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

from workflow.run_directory import status
from workflow.run_directory.status import PlanFile, Row

SHOWN = 12  # rows of the live table besides the totals
PLAIN_SECONDS = 20.0  # between two plain lines of progress
LOOK_SECONDS = 1.5  # between two looks at the file in which a stage tells its progress


def live(stream: TextIO) -> bool:
    """Whether lines can be written over there."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def coloured(stream: TextIO) -> bool:
    return live(stream) and not os.environ.get("NO_COLOR")  # https://no-color.org


class Screen:
    """`update` is called a few times a second with the states of all stages; who looks at files is `status`."""

    def __init__(self, root: Path, plan: PlanFile):
        self.root, self.plan = root, plan
        self.begun, self.said = time.monotonic(), time.monotonic()
        self.states: dict[str, str] = {}
        self.looked: dict[str, tuple[float, Row]] = {}  # stage -> when, and what its file said
        self.live, self.banner = None, ""

    def __enter__(self) -> Screen:
        if live(sys.stdout):
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
            print(f"{clock(time.monotonic() - self.begun)}  {banner or 'the scheduler answers again'}", flush=True)
        self.banner = banner
        rows = [self.row(stage, states.get(stage.id, "waiting")) for stage in self.plan.stages]
        if self.live is not None:
            self.live.update(table(rows, time.monotonic() - self.begun, banner))
        else:
            self.plain(rows)

    def row(self, stage: status.PlannedStage, state: str) -> Row:
        if state != "running":
            return Row(stage.id, stage.kind, state, stage.folder)
        if stage.id not in self.looked or time.monotonic() - self.looked[stage.id][0] > LOOK_SECONDS:
            self.looked[stage.id] = time.monotonic(), status.running(stage, self.root / stage.folder)
        return self.looked[stage.id][1]

    def plain(self, rows: list[Row]) -> None:
        for row in rows:
            before, self.states[row.id] = self.states.get(row.id), row.state
            if row.state != before and row.state in ("queued", "running", "failed", "blocked"):
                print(f"{clock(time.monotonic() - self.begun)}  {row.state:8} {row.id}", flush=True)
            elif row.state == "done" and before in ("queued", "running"):
                print(f"{clock(time.monotonic() - self.begun)}  done     {row.id}", flush=True)
        if time.monotonic() - self.said > PLAIN_SECONDS:
            self.said = time.monotonic()
            under_way = ", ".join(f"{r.id} {progress(r)}" for r in rows if r.state == "running")
            print(f"{clock(self.said - self.begun)}  {totals(rows)}  |  {under_way}", flush=True)


def totals(rows: list[Row]) -> str:
    return "  ".join(f"{kind} {done}/{total}" for kind, (done, total) in status.counts(rows).items())


def table(rows: list[Row], seconds: float, banner: str):
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
    for row in shown[:SHOWN]:
        loss = f"{row.loss:.4f}" if row.loss is not None else ""
        left = clock(row.eta) if row.eta is not None else ""
        grid.add_row(row.id, Text(row.state, style=colours[row.state]), progress(row), loss, left)
    more = len(shown) - SHOWN
    head = Text.assemble((f"{totals(rows)}   {clock(seconds)}", "bold"))
    foot = Text((f"... and {more} more   " if more > 0 else "") + "Ctrl-C stops; the same command goes on", style="dim")
    return Group(head, *([Text(banner, style="yellow")] if banner else []), grid, foot)


def progress(row: Row) -> str:
    if row.total is None:
        return ""
    return f"{row.done:,.0f}/{row.total:,.0f}"


def clock(seconds: float) -> str:
    """1:02 or 1:02:03"""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
