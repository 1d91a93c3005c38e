"""Splits that would be empty: whole groups move there from the others, or a person is told what to type.

Where there are many groups, a hash gives each its split, whatever other groups there are. With few groups this may leave a
split empty, as may a published split without a validation part. Then groups move, in an order that a hash gives too. Moves
are noted before any shard is written again, so a conversion that is killed meanwhile ends with the same shards.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from gnnscale.contract import errors, files
from gnnscale.contract.settings import ConversionSettings
from gnnscale.data.conversion.shard_notes import Note, note_of_shard
from gnnscale.data.storage import adios, splits
from gnnscale.data.storage.manifest import Manifest, ShardSums
from gnnscale.data.storage.mapped import Shards
from gnnscale.schema import Record

MOVES = "moved_groups.json"  # beside shards/
TRAIN = splits.NAMES.index("train")


class Move(Record):
    """Structures of one group that change from one split to another."""

    group: int
    origin: int = Field(description="index of a split")
    target: int = Field(description="index of a split")


class Moves(Record):
    """The content of moved_groups.json."""

    groups: tuple[Move, ...]
    published: bool = Field(description="the source has a split of its own")

    def describe(self) -> str:
        """Return a sentence for the card; "" if nothing moved."""
        counts = [(name, sum(move.target == k for move in self.groups)) for k, name in enumerate(splits.NAMES)]
        moved = " and ".join(f"{count} to {name}" for name, count in counts if count)
        why = "the published split has none there" if self.published else "they are few"
        return f"Groups were moved so that no split is empty, as {why}: {moved}" if moved else ""


def fill_empty_splits(
    folder: Path, notes: list[Note], manifest: Manifest, settings: ConversionSettings
) -> tuple[list[Note], Moves]:
    """Return the notes of shards in which no split is empty that should not be, and the groups that moved for this."""
    published = any(note.published for note in notes)
    if (folder / MOVES).exists():
        moves = files.read_model(folder / MOVES, Moves)
    else:
        empty = find_empty(manifest.total, settings)
        if not empty:
            return notes, Moves(groups=(), published=published)
        shards = Shards(folder / "shards", manifest)
        moves = Moves(groups=choose_moves(shards, empty, settings, published), published=published)
        files.write_model(folder / MOVES, moves)
    return [move_groups(folder, note, moves) for note in notes], moves


def find_empty(total: ShardSums, settings: ConversionSettings) -> list[int]:
    """Return the splits without a structure, among those whose share is not 0."""
    if settings.test_of is not None:
        return []
    return [
        k for k, name in enumerate(splits.NAMES) if settings.split.share(name) and not total.counts[name].structures
    ]


def choose_moves(shards: Shards, empty: list[int], settings: ConversionSettings, published: bool) -> tuple[Move, ...]:
    """Choose the groups for each empty split, in the order of a hash; of a published split, only training groups."""
    groups = {k: order_groups(shards.group[shards.split == k], settings.split.seed) for k in range(len(splits.NAMES))}
    total, moves = len(np.unique(shards.group)), list[Move]()
    for after, target in zip(reversed(range(len(empty))), empty):
        donor = TRAIN if published else max(groups, key=lambda k: len(groups[k]))
        most = len(groups[donor]) - 1 - after  # one stays, and one is left for each empty split after this
        if most < 1:
            raise too_few_groups(shards, settings, published)
        count = min(max(1, round(settings.split.share(splits.NAMES[target]) * total)), most)
        groups[target], groups[donor] = groups[donor][:count], groups[donor][count:]
        moves += [Move(group=group, origin=donor, target=target) for group in groups[target]]
    return tuple(moves)


def order_groups(groups: np.ndarray, seed: int) -> list[int]:
    return sorted(np.unique(groups).tolist(), key=lambda group: splits.group_hash(f"{seed}/{group}"))


def move_groups(folder: Path, note: Note, moves: Moves) -> Note:
    """Write the shard of a note again if structures of it move; return the note of the shard as it is then."""
    if note.entry is None:
        return note
    shard, packed = note.entry.shard, adios.read_shard(folder / "shards", note.entry)
    split = packed.split.copy()
    for move in moves.groups:
        split[(packed.group == move.group) & (packed.split == move.origin)] = move.target
    if (split == packed.split).all():
        return note
    path = folder / "shards" / shard.name
    made = note.model_copy(
        update={"entry": adios.write_packed(path, packed._replace(split=split), note.entry.cutoff, shard.units)}
    )
    files.write_model(note_of_shard(folder, shard.name), made)
    return made


def too_few_groups(shards: Shards, settings: ConversionSettings, published: bool) -> errors.UserError:
    """Return an error that says how the structures are grouped, and each way out with what to type."""
    counts = shards.manifest.total.counts
    found = ", ".join(f"{name} {count.structures:,}" for name, count in counts.items())
    groups, wanted = len(np.unique(shards.group)), sum(settings.split.share(name) > 0 for name in splits.NAMES)
    how = "the published split has" if published else "split by whole groups, they are"
    noun = "group" if groups == 1 else "groups"
    message = (
        f"{settings.name}: {len(shards):,} structures of {groups} {noun} are too few for {wanted} splits; {how} {found}"
    )
    if len(shards) < wanted or settings.split.by == "frame":
        return errors.UserError(message, "ask for more structures, or give a larger file", kind="data")
    hints = [
        "split frames one by one, under the source: split: {by: frame} (by hand: another OUT and --split-by frame); "
        "frames of one trajectory resemble each other, so the errors are then too optimistic",
        f"or name a field of at least {wanted} values, such as a trajectory, with the option `group` of the dataset",
    ]
    if not published and groups == 2 < wanted:
        hints.append("or give a file to test on, under the source: split: {test: 0} and tests: {NAME: {raw: FILE}}")
    return errors.UserError(message, *hints, kind="data")
