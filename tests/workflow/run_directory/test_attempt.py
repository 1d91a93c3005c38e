"""Attempts on disk: they are numbered, start clean, and their last output can be read however they ended."""

import errno
import os

import pytest

from gnnscale.contract import files
from gnnscale.contract.results import StageError
from gnnscale.contract.stage_spec import StageSpec
from tests.support.corpus import TINY
from workflow.run_directory import attempt
from workflow.run_directory.attempt import DISK_FULL, AttemptOutcome


def spec():
    return StageSpec(id="train/x", key="k" * 64, settings=TINY, code={"train/loop.py": "d"})


def test_each_attempt_has_a_directory_of_its_own_and_no_error_of_an_earlier_one(tmp_path):
    first = attempt.prepare_attempt(tmp_path, spec(), "true\n")
    files.write_model(tmp_path / "error.json", StageError(id="train/x", kind="data", message="no atoms"))
    (tmp_path / "progress.json").write_text("{}")
    assert attempt.read_stage_error(tmp_path).message == "no atoms"
    second = attempt.prepare_attempt(tmp_path, spec(), "false\n")
    assert (first.name, second.name) == ("1", "2") and (tmp_path / "command.sh").read_text() == "false\n"
    assert attempt.read_stage_error(tmp_path) is None and not (tmp_path / "progress.json").exists()
    assert files.read_model(tmp_path / "spec.json", StageSpec) == spec()


def test_a_tail_has_the_last_lines_without_blank_ones_and_without_the_error_that_is_in_a_file(tmp_path):
    path = tmp_path / "stderr"
    path.write_text("".join(f"line {n}  \n\n" for n in range(100)) + "error (data): no atoms\n")
    assert attempt.read_tail(path) == tuple(f"line {n}" for n in range(100 - attempt.TAIL_LINES, 100))
    assert attempt.read_tail(path, max_lines=2) == ("line 98", "line 99")
    assert attempt.read_tail(path, max_bytes=39) == ("8", "line 99"), "the window may begin within a line"
    assert attempt.read_tail(tmp_path / "none") == ()


def test_the_last_output_is_of_the_first_file_that_has_any(tmp_path):
    for name in ("job.out", "stdout", "stderr"):
        (tmp_path / name).write_text("")
    assert attempt.read_last_output(tmp_path) == ()
    (tmp_path / "job.out").write_text("of the job\n")
    assert attempt.read_last_output(tmp_path) == ("of the job",)
    (tmp_path / "stdout").write_text("of the stage\n")
    assert attempt.read_last_output(tmp_path) == ("of the stage",)
    (tmp_path / "stderr").write_text("an error\n")
    assert attempt.read_last_output(tmp_path) == ("an error",)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, DISK_FULL),
        (errno.EDQUOT, DISK_FULL._replace(message="disk quota exceeded")),
        (errno.EACCES, AttemptOutcome("permission", "/r/x: permission denied", "make it writable")),
    ],
)
def test_a_full_disk_is_told_from_one_that_cannot_be_written_to(number, expected):
    assert attempt.disk_error_outcome(OSError(number, os.strerror(number), "/r/x")) == expected


def test_the_line_that_says_most_is_not_the_launchers():
    """A launcher reports last, and only that a task ended; podman-hpc adds a line of its own after Podman's."""
    srun = ["srun: error: n1: task 0: Exited with exit code 125", "srun: Terminating StepId=7.0"]
    podman = ["Error: localhost/x:1: image not known", "Failed to start containerKilling monitor thread"]
    assert attempt.find_telling_line([*podman, *srun]) == podman[0]
    assert attempt.find_telling_line(["ModuleNotFoundError: x", *srun]) == "ModuleNotFoundError: x"
    assert attempt.find_telling_line(srun) == srun[-1], "better than nothing"
    assert attempt.find_telling_line([]) == ""
