"""Notes about the shards of a conversion: which are whole, where in a work item each ends, and what was left out.

A note is written after its shard, so a shard without a note is not whole and is written again.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from gnnscale.contract import errors, files
from gnnscale.data.storage.manifest import ENTRY, ShardEntry
from gnnscale.data.storage.mapped import check_shard
from gnnscale.schema import Record

NOTES = "shard_notes"  # folder beside shards/


class Position(NamedTuple):
    """The position in a work item: the index of a piece, and how many of its structures were read."""

    piece: int = 0
    number: int = 0


class Note(Record):
    """shard_notes/ITEM-SHARD.json: a shard is whole, or the work item is finished."""

    total: int = Field(description="work items of the whole dataset")
    entry: ShardEntry | None = Field(description="null where nothing was left for a shard")
    position: Position = Field(description="how far the work item was read by then")
    kept: int = Field(description="structures of the work item in shards by then")
    skipped: dict[str, int] = Field(description="reason -> structures of the work item left out by then")
    references: dict[str, float] = Field(
        description="symbol -> eV, of isolated atoms of the work item by then; the lowest"
    )
    published: bool = Field(description="a structure of the work item by then has a split of its own")
    done: bool = Field(description="the work item is finished")


def note_path(folder: Path, item: int, shard: int) -> Path:
    return folder / NOTES / f"{item:05}-{shard:03}.json"


def shard_path(folder: Path, item: int, shard: int) -> Path:
    return folder / "shards" / f"{item:05}-{shard:03}.bp"


def note_of_shard(folder: Path, name: str) -> Path:
    """Return the path of the note about the shard of this name."""
    return folder / NOTES / Path(name).with_suffix(".json")


def read_notes(folder: Path, item: int) -> list[Note]:
    """Read the notes about a work item's shards, in order."""
    found: list[Note] = []
    while (path := note_path(folder, item, len(found))).exists():
        found.append(files.read_model(path, Note))
    return found


def read_last_note(folder: Path, item: int) -> Note | None:
    number = 0
    while note_path(folder, item, number).exists():
        number += 1
    return files.read_model(note_path(folder, item, number - 1), Note) if number else None


def is_finished(folder: Path, item: int) -> bool:
    last = read_last_note(folder, item)
    return last is not None and last.done


def read_all_notes(folder: Path) -> list[Note]:
    """Read the notes of all work items, in order; a UserError if one is not finished."""
    found: list[Note] = []
    number = 0
    while True:
        notes = read_notes(folder, number)
        if not notes or not notes[-1].done:
            message = f"{folder}: work item {number} was never finished"
            raise errors.UserError(message, "run the conversion again", kind="data")
        found += notes
        number += 1
        if number == notes[-1].total:
            return found


def keep_whole_shards(folder: Path, item: int) -> list[Note]:
    """Return the notes whose shards are unaltered, every byte, and remove those from the first altered shard on."""
    whole: list[Note] = []
    for number, note in enumerate(read_notes(folder, item)):
        if not is_whole(shard_path(folder, item, number), note.entry):
            break
        whole.append(note)
    number = len(whole)
    while (path := note_path(folder, item, number)).exists():
        path.unlink()
        number += 1
    return whole


def is_whole(path: Path, entry: ShardEntry | None) -> bool:
    if entry is None:
        return True
    try:
        check_shard(path, entry.shard, check=True)
        return (path / ENTRY).read_text() == entry.model_dump_json()
    except (errors.BadFile, OSError):
        return False


def join_references(notes: list[Note]) -> dict[str, float]:
    """Return the energies of isolated atoms, by symbol: of several states the ground state, which is the lowest."""
    lowest: dict[str, float] = {}
    for note in notes:
        for symbol, energy in note.references.items():
            lowest[symbol] = min(energy, lowest.get(symbol, energy))
    return dict(sorted(lowest.items()))


def count_skipped(notes: list[Note]) -> dict[str, int]:
    """Return reason -> structures; a note counts for its work item until there, so the last of each item counts."""
    counts: dict[str, int] = {}
    for note in notes:
        for reason, count in note.skipped.items() if note.done else ():
            counts[reason] = counts.get(reason, 0) + count
    return dict(sorted(counts.items()))
