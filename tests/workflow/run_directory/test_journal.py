"""A journal that is cut at any byte keeps the lines before the cut, and takes new ones."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow.run_directory import journal

FACTS = st.dictionaries(
    st.sampled_from(["job", "name", "message", "nodes"]),
    st.text() | st.integers() | st.floats(allow_nan=False),
    max_size=3,
)


def written(path, facts):
    log = journal.Journal(path)
    for number, each in enumerate(facts):
        log.note("submit", f"train/{number}", durable=number % 2 == 0, **each)
    return path.read_bytes()


@pytest.mark.slow
@given(st.lists(FACTS, min_size=1, max_size=5), st.floats(0, 1))
def test_cut_anywhere(tmp_path_factory, facts, share):
    path = tmp_path_factory.mktemp("journal") / "events.jsonl"
    whole = written(path, facts)
    cut = round(share * len(whole))
    path.write_bytes(whole[:cut])
    kept = [event["stage"] for event in journal.read_events(path)]
    lines = whole[:cut].count(b"\n") + (
        cut < len(whole) and whole[cut : cut + 1] == b"\n"
    )  # a newline alone is no loss
    assert kept == [f"train/{number}" for number in range(lines)]
    journal.Journal(path).note("done", "after", durable=True)
    assert [event["stage"] for event in journal.read_events(path)] == [*kept, "after"]


@given(st.floats(0, 1, exclude_max=True))
def test_a_flipped_byte_costs_its_line_alone(tmp_path_factory, share):
    path = tmp_path_factory.mktemp("journal") / "events.jsonl"
    whole = bytearray(written(path, [{"job": str(number)} for number in range(4)]))
    place = int(share * len(whole))
    place -= whole[place] == ord("\n")
    hit = whole[:place].count(b"\n")
    whole[place] ^= 1
    path.write_bytes(whole)
    kept = [event["stage"] for event in journal.read_events(path)]
    assert kept == [f"train/{number}" for number in range(4) if number != hit]


def test_a_line_is_json_to_anybody_else(tmp_path):
    path = tmp_path / "events.jsonl"
    written(path, [{"message": 'a "crc": and\na line'}])
    assert json.loads(path.read_text())["message"] == 'a "crc": and\na line'
    assert journal.read_events(tmp_path / "none") == []


def test_a_full_disk_is_told_where_it_matters(tmp_path):
    full = tmp_path / "events.jsonl"
    full.symlink_to("/dev/full")
    log = journal.Journal(full)
    log.note("start", "train/x")  # worth no failure
    with pytest.raises(OSError, match="No space left"):
        log.note("submit", "train/x", durable=True)
    full.unlink()
    log.note("submit", "train/y", durable=True)
    assert [event["stage"] for event in journal.read_events(full)] == ["train/y"]


def test_a_part_written_is_not_joined_with_the_next(tmp_path, monkeypatch):
    log, write = journal.Journal(tmp_path / "events.jsonl"), os.write
    monkeypatch.setattr(journal.os, "write", lambda handle, text: write(handle, text[:20]))
    with pytest.raises(OSError, match="no space"):
        log.note("submit", "train/x", durable=True)
    monkeypatch.undo()
    log.note("submit", "train/y", durable=True)
    assert [event["stage"] for event in journal.read_events(log.path)] == ["train/y"]
