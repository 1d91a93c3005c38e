"""Plans and states of large studies: stages that are alike share a line, and nothing is left out."""

import re
from pathlib import Path

import pytest

from workflow.cli import status_output
from workflow.run import main
from workflow.run_directory.status import PlanFile, StageStatus

STAGE = re.compile(r"^  (?: *(\d+) x | {7})(\w+)/(\S+)  +(done|run|resume|check|refused) ")


def plan(capsys, *words):
    assert main(["plan", *words]) == 0
    return capsys.readouterr().out


@pytest.fixture
def listed(capsys, tmp_path):
    """Return the plan of a large study with a line for each stage."""
    text = plan(capsys, "--study", "paper-generated", "--all", "--root", str(tmp_path))
    return [line.split()[:2] for line in text.splitlines() if re.match(r"  \w+/", line)]


def test_a_large_plan_has_a_line_for_all_that_are_alike(capsys, tmp_path, listed):
    text = plan(capsys, "--study", "paper-generated", "--root", str(tmp_path))
    groups = [found.groups() for line in text.splitlines() if (found := STAGE.match(line))]
    assert len(listed) > 200 and len(text.splitlines()) < 60
    assert sum(int(count or 1) for count, *_ in groups) == len(listed)
    for count, kind, name, state in groups:
        alike = [id for id, of in listed if of == state and id.startswith(f"{kind}/{name.removesuffix('*')}")]
        assert len(alike) >= int(count or 1), f"{kind}/{name}"
    assert f"`plan --all` lists each of the {len(listed)} stages" in text
    assert "3,050,000 to 36,570,000 structures" in text and "convert_part/adsorbate.* " in text


def test_a_small_plan_names_each_stage(capsys, tmp_path):
    text = plan(capsys, "--root", str(tmp_path))
    assert "train/w56-d3-n2600 " in text and " x " not in text and "--all" not in text
    assert text == plan(capsys, "--all", "--root", str(tmp_path))


def test_json_has_each_stage_anyway(capsys, tmp_path):
    words = ("--study", "isoflop", "--json", "--root", str(tmp_path))
    assert plan(capsys, *words) == plan(capsys, *words, "--all")


# -------------------------------------------------------------------------------------------------------------- status
def rows_of(*states):
    """Return rows of trainings: (state, message, how many)."""
    return [
        StageStatus(f"train/{state}{n}{message}{k}", "train", state, "train/x", message=message, job="7")
        for n, (state, message, count) in enumerate(states)
        for k in range(count)
    ]


def status(capsys, rows, in_full=False):
    made = PlanFile(study="s", site="local", stages=())
    status_output.print_status(Path("/run"), made, rows, None, False, in_full)
    return capsys.readouterr().out


def test_a_few_rows_are_all_shown(capsys):
    text = status(capsys, rows_of(("queued", "", 5), ("failed", "disk full", 2), ("done", "", 90)))
    assert text.count("queued  ") == 5 and text.count("failed  ") == 2 and "--all" not in text


def test_many_rows_that_are_alike_share_a_line(capsys):
    rows = rows_of(("queued", "", 70), ("failed", "disk full", 9), ("failed", "NaN", 1), ("done", "", 90))
    text = status(capsys, rows)
    assert "  queued     70 x train  (train/queued00, ...)" in text
    assert "  failed      9 x train: disk full  (train/failed1disk full0, ...)" in text
    assert "  failed   train/failed2NaN0: NaN" in text and "`status --all` lists each stage" in text
    assert len(text.splitlines()) < 10
    assert len(status(capsys, rows, in_full=True).splitlines()) > 80


def test_the_progress_of_many_is_their_sum(capsys):
    rows = [row._replace(done=3.0, total=10.0) for row in rows_of(("running", "", 30))]
    assert "  running    30 x train  90/300  (train/running00, ...)" in status(capsys, rows)
