"""Splits as a study asks for them: by groups, by frames, as published, or a whole file; none is empty without need."""

import numpy as np
import pytest

from gnnscale.contract import errors
from gnnscale.contract.dataset_card import Split
from gnnscale.data.conversion import empty_splits
from gnnscale.data.conversion.dataset import FRAMES_LEAK, join_shards
from gnnscale.data.conversion.work_items import split_work
from gnnscale.data.storage import adios, mapped, splits
from gnnscale.stages.convert import convert_items
from tests.support import conversions, layouts

FRAMES = 6  # of each group


def in_groups(count, split=lambda group: None):
    known = [s for seed in range(count * FRAMES // 9 + 1) for s in layouts.make_molecules(seed=seed)]
    return [
        known[group * FRAMES + frame]._replace(group=f"g{group}", split=split(group))
        for frame in range(FRAMES)
        for group in range(count)
    ]


def groups_of(folder):
    """Return the groups of each split; no group may be in two, unless the source says so."""
    packed = adios.read(folder / "shards")
    return [set(packed.group[packed.split == k].tolist()) for k in range(len(splits.NAMES))]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(adios, "STRUCTURES_PER_SHARD", 7)


@pytest.mark.parametrize("count", [3, 4, 5, 8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_groups_or_more_fill_all_splits(count, seed, tmp_path):
    """Whole groups move, the same whatever their order in the files, and the card says so."""
    structures, split = in_groups(count), Split(validation=0.05, test=0.15, seed=seed)
    card = conversions.convert(tmp_path / "one", structures, split=split)
    train, validation, test = found = groups_of(tmp_path / "one")
    assert train and validation and test and sum(map(len, found)) == count
    assert [card.counts[name].groups for name in splits.NAMES] == [len(groups) for groups in found]
    assert sum(each.structures for each in card.counts.values()) == count * FRAMES
    moved = sum(splits.split_of(f"g{k}", split) != at(found, f"g{k}") for k in range(count))
    assert bool(moved) == any("Groups were moved" in remark for remark in card.remarks)
    conversions.convert(tmp_path / "two", structures[::-1], split=split)
    assert groups_of(tmp_path / "two") == found


def at(found, name):
    return next(k for k, groups in enumerate(found) if splits.group_hash(name) in groups)


def test_enough_groups_are_split_by_hash_alone(tmp_path):
    structures, split = in_groups(40), Split(validation=0.2, test=0.2)
    card = conversions.convert(tmp_path, structures, split=split)
    found = groups_of(tmp_path)
    assert "moved" not in str(card.remarks) and all(
        at(found, f"g{k}") == splits.split_of(f"g{k}", split) for k in range(40)
    )


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_groups_are_refused_with_what_to_type(count, tmp_path):
    with pytest.raises(errors.UserError) as refused:
        conversions.convert(tmp_path, in_groups(count))
    message = str(refused.value)
    assert f"mine: {count * FRAMES} structures of {count} group" in message and "train " in message
    for typed in ("split: {by: frame}", "`group`", "too optimistic"):
        assert typed in message
    assert ("split: {test: 0} and tests: {NAME: {raw: FILE}}" in message) == (count == 2), "for one it would not do"


def test_frames_of_one_group_are_split_when_asked_and_the_card_says_that_they_leak(tmp_path):
    card = conversions.convert(tmp_path, in_groups(1) * 4, split=Split(by="frame", test=0.25))
    found = groups_of(tmp_path)
    assert sum(map(len, found)) == 4 * FRAMES and all(found) and FRAMES_LEAK in card.remarks


def test_two_groups_suffice_where_an_external_file_is_the_test(tmp_path):
    conversions.convert(tmp_path, in_groups(2), split=Split(test=0.0))
    train, validation, test = groups_of(tmp_path)
    assert len(train) == len(validation) == 1 and not test


def test_all_of_an_external_test_is_held_out(tmp_path):
    card = conversions.convert(tmp_path, in_groups(2, split=lambda group: "train"), test_of="other")
    train, validation, test = groups_of(tmp_path)
    assert not train and not validation and len(test) == 2
    assert card.test_of == "other" and not card.trained_elements and not card.references


def test_a_published_split_without_validation_takes_it_from_training_groups(tmp_path):
    names = ["train"] * 12 + ["test"] * 4
    card = conversions.convert(tmp_path, in_groups(16, split=names.__getitem__), split=Split(validation=0.1))
    train, validation, test = groups_of(tmp_path)
    assert test == {splits.group_hash(f"g{k}") for k in range(12, 16)}
    assert len(validation) == 2 and len(train) == 10 and "published split" in card.remarks[0]


def test_a_published_test_is_not_touched_to_fill_another_split(tmp_path):
    names = ["train"] + ["test"] * 5
    with pytest.raises(errors.UserError, match="the published split has train 6, validation 0, test 30"):
        conversions.convert(tmp_path, in_groups(6, split=names.__getitem__))


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_kill_while_groups_move_changes_nothing(after, tmp_path, monkeypatch):
    structures, split = in_groups(4), Split()
    conversions.convert(tmp_path / "one", structures, split=split)
    whole, left = adios.write_packed, [after]

    def die(*words):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return whole(*words)

    conversion, folder = conversions.prepare(structures, split=split), tmp_path / "two"
    items = split_work(conversion)
    convert_items(conversion, items, folder, lambda: None)
    monkeypatch.setattr(adios, "write_packed", die)
    with pytest.raises(KeyboardInterrupt):
        join_shards(folder, conversion)
    assert (folder / empty_splits.MOVES).exists()
    monkeypatch.setattr(adios, "write_packed", whole)
    convert_items(conversion, items, folder, lambda: None)
    join_shards(folder, conversion)
    one, two = (mapped.open_shards(tmp_path / name / "shards", check=True) for name in ("one", "two"))
    assert one.manifest == two.manifest
    assert np.array_equal(one.split, two.split)


def test_nothing_to_convert_says_what_was_left_out(tmp_path):
    atom = layouts.make_molecules()[0]._replace(
        numbers=np.array([8]), positions=np.zeros((1, 3)), forces=np.zeros((1, 3)), is_reference=True
    )
    with pytest.raises(errors.UserError, match=r"no structure to convert; left out: 1 \(isolated atom"):
        conversions.convert(tmp_path, [atom])
