"""The process of a stage: one writer, words instead of tracebacks, and the exit code of each kind of error."""

import errno
import fcntl
import os

import pytest

from gnnscale.contract import errors, exit_codes, stage_run
from gnnscale.contract.settings import EvaluateSettings, ReportSettings
from gnnscale.job import stage_process
from gnnscale.machine import accelerator, rank_env
from tests.support.corpus import make_stage_directory, run_stage


@pytest.mark.slow
def test_a_directory_in_use_is_refused_and_its_holder_named(tmp_path):
    made = make_stage_directory(tmp_path, "evaluate/x", EvaluateSettings())
    with open(made / "lock", "w") as lock:
        lock.write("somewhere pid 7")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_stage(made)
    assert done.returncode == 64
    assert "in use by somewhere pid 7" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, "", "{", '{"format": 2}', '{"format": 1, "id": "x"}'])
def test_a_broken_spec_is_reported_in_words(tmp_path, content):
    made = make_stage_directory(tmp_path, "evaluate/x", EvaluateSettings())
    (made / "spec.json").unlink()
    if content is not None:
        (made / "spec.json").write_text(content)
    done = run_stage(made, module="evaluate")
    assert done.returncode == 64
    assert "spec.json" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("gpus", [0, 4])
def test_provenance_names_the_kind_of_gpu(monkeypatch, gpus):
    monkeypatch.setattr(accelerator, "list_devices", lambda: [accelerator.Gpu("Some GPU", 1)] * gpus)
    assert stage_process.collect_provenance().get("accelerator") == ("Some GPU" if gpus else None)


def test_settings_of_another_stage_are_refused(tmp_path):
    done = run_stage(make_stage_directory(tmp_path, "evaluate/x", EvaluateSettings()), module="report")
    assert done.returncode == exit_codes.REFUSED and "Traceback" not in done.stderr
    run = stage_run.Run(make_stage_directory(tmp_path, "evaluate/y", EvaluateSettings()))
    assert run.require_settings(EvaluateSettings) == EvaluateSettings()
    with pytest.raises(errors.UserError, match="settings of the stage evaluate, expected those of report"):
        run.require_settings(ReportSettings)


@pytest.mark.slow
def test_usage_is_shown_for_no_directory(tmp_path):
    done = run_stage(tmp_path, module="evaluate")
    assert done.returncode == 64 and "spec.json" in done.stderr


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), "disk-full"),
        (OSError(errno.EDQUOT, "Quota exceeded", "x"), "disk-full"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "permission"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "permission"),
        (MemoryError(), "out-of-memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "out-of-memory"),
        (errors.UserError("no", "do this"), "configuration"),
        (errors.BadFile("x: bad"), "data"),
        (OSError("a library gives neither number nor file"), "application"),
        (PermissionError(errno.EACCES, None), "permission"),
        (ValueError("our mistake"), "application"),
    ],
)
def test_errors_are_classified(error, kind):
    assert stage_process.explain_error(error).kind == kind


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 0, 1, "none")),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, (3, 1, 8, "torch")),
        ({"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8"}, (5, 1, 8, "srun")),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}, (0, 0, 1, "none")),
        ({"PALS_RANKID": "2", "PALS_LOCAL_RANKID": "2", "PALS_NRANKS": "12"}, (2, 2, 12, "pals")),
        ({"PMI_RANK": "1", "MPI_LOCALRANKID": "1", "PMI_SIZE": "2"}, (1, 1, 2, "hydra")),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"},
            (1, 0, 2, "openmpi"),
        ),
    ],
)
def test_every_launcher_gives_the_rank(environ, expected):
    assert tuple(rank_env.read_ranks(environ)) == expected


def test_progress_is_readable_at_any_moment(tmp_path):
    made = make_stage_directory(tmp_path, "evaluate/x", EvaluateSettings())
    run = stage_run.Run(made)
    for step in range(1, 101):
        run.report_progress(step, 100, loss=1 / step)
    assert '"done": 100' in (made / "progress.json").read_text()
    assert not [name for name in os.listdir(made) if name.endswith(".tmp")]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, number):
    """The lack of locks is not taken for a lock that another process holds."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(stage_process.time, "sleep", lambda _: None)
    with pytest.raises(errors.UserError, match="files cannot be locked here") as caught:
        stage_process.lock_directory(tmp_path)
    assert "--root DIR" in caught.value.hints[0]
