"""Files are whole or absent, and a stage is done only if everything is as its result says."""

import os

import pytest

from gnnscale.contract import files
from gnnscale.contract.results import StageResult


def finished(directory, key="k" * 16, names=("out.txt",)):
    outputs = files.describe_outputs(directory, list(names))
    files.write_model(
        directory / "result.json",
        StageResult(
            id="train/x",
            key=key,
            outputs=outputs,
            digest="d",
            inputs={},
            started=0,
            seconds=1,
            cpu_seconds=1,
            peak_bytes=1,
        ),
    )


def test_a_failed_write_leaves_the_old_content_and_no_debris(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        files.write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_verify_notices_what_happened_to_the_outputs(tmp_path):
    out, key = tmp_path / "out.txt", "k" * 16
    assert files.verify(tmp_path, key).reason == "not run yet"
    (tmp_path / "attempts").mkdir()
    assert "interrupted" in files.verify(tmp_path, key).reason
    out.write_text("hello")
    finished(tmp_path)
    assert files.verify(tmp_path, key).done
    assert "another key" in files.verify(tmp_path, "x" * 16).reason
    os.utime(out, ns=(1, 1))
    assert files.verify(tmp_path, key).done, "another time, but the same content"
    out.write_text("jello")
    os.utime(out, ns=(2, 2))  # the file system's clock may not have ticked since it was made
    assert "altered" in files.verify(tmp_path, key).reason
    out.write_text("hell")
    assert "4 bytes, 5 expected" in files.verify(tmp_path, key).reason
    out.unlink()
    assert "missing" in files.verify(tmp_path, key).reason


def test_only_a_deep_look_finds_what_kept_its_size_and_time(tmp_path):
    out = tmp_path / "out.txt"
    out.write_text("hello")
    finished(tmp_path)
    stat = out.stat()
    out.write_text("jello")
    os.utime(out, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert files.verify(tmp_path, "k" * 16).done
    assert not files.verify(tmp_path, "k" * 16, deep=True).done


def test_a_result_cut_off_anywhere_is_no_result(tmp_path):
    (tmp_path / "out.txt").write_text("hello")
    finished(tmp_path)
    whole = (tmp_path / "result.json").read_bytes()
    for length in range(0, len(whole) - 2, 37):
        (tmp_path / "result.json").write_bytes(whole[:length])
        assert not files.verify(tmp_path, "k" * 16).done


def test_digest_does_not_depend_on_the_order_of_keys():
    assert files.digest({"a": 1, "b": [1, 2]}) == files.digest({"b": [1, 2], "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": 2})
