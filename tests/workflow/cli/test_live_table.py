"""The display of a running study, and how often it reads files."""

import io

import pytest

from workflow.cli import live_table
from workflow.run_directory import status
from workflow.run_directory.status import PlanFile, RecordedStage, StageStatus


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("environ", "live", "coloured"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
    ],
)
def test_what_a_terminal_can_do(monkeypatch, environ, live, coloured):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert live_table.can_rewrite_lines(Terminal()) is live and live_table.has_colours(Terminal()) is coloured
    assert not live_table.can_rewrite_lines(io.StringIO()) and not live_table.has_colours(io.StringIO())


def test_progress_is_read_now_and_then(tmp_path, monkeypatch):
    """A driver looks ten times a second at hundreds of trainings; their files lie on a shared file system."""
    stage = RecordedStage(id="train/a", kind="train", key="k", folder="train/a-k", needs=(), core_seconds=1.0)
    reads, clock = [], [100.0]

    def running(stage, folder):
        reads.append(folder)
        return StageStatus(stage.id, stage.kind, "running", stage.folder)

    monkeypatch.setattr(status, "read_running", running)
    monkeypatch.setattr(live_table.time, "monotonic", lambda: clock[0])
    shown = live_table.ProgressDisplay(tmp_path, PlanFile(study="s", site="local", stages=(stage,)))
    for tenth in range(100):  # of a second
        clock[0] = 100.0 + tenth / 10
        shown.update({"train/a": "running"})
    assert 5 <= len(reads) <= 10
