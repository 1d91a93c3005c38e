"""A dataset converted in lots: what one process takes at a time, what a killed conversion goes on from.

Units (see published.Unit) come in lots of consecutive ones, cut by their expected sizes alone. A lot becomes one shard,
or as many as it needs; none has structures of two lots. So the shards are the same byte for byte whoever makes which
lot, on how many ranks or in how many parts, and however often it was killed. Of each shard that is whole there is a note
in lots/: where in the lot it ends, and what was left out until there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from gnnscale.atoms.structure import Structure
from gnnscale.contract import files
from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.contract.settings import ConvertSettings
from gnnscale.data.conversion.overlapping_atoms import NEAREST, coincident
from gnnscale.data.formats.pieces import BadRaw, Unit
from gnnscale.data.storage import adios
from gnnscale.data.storage.manifest import ENTRY, ShardEntry
from gnnscale.data.storage.mapped import examine
from gnnscale.schema import Spec

LOT = 6144  # expected structures: three quarters of a shard, as estimates err
SECONDS = 15.0  # of work in a lot: what a kill may cost, and what several processes can share
ATOMS = 1 << 20  # of a shard: about 100 MB while they are structures in memory


class Job(NamedTuple):
    """All that a conversion depends on."""

    script: ModuleType
    options: Any  # of the script
    settings: ConvertSettings
    card: DatasetCard
    quarantined: dict[tuple[str, int], str]


class Lot(NamedTuple):
    number: int
    of: int  # lots of the whole dataset
    units: list[Unit]
    structures: float  # expected


class Note(Spec):
    """lots/LOT-SHARD.json: a shard is whole, or the lot is at its end."""

    of: int = Field(description="lots of the whole dataset")
    entry: ShardEntry | None = Field(description="null where nothing was left for a shard")
    unit: int = Field(description="index in the lot of the unit that was being read")
    number: int = Field(description="structures that this unit had given by then")
    kept: int = Field(description="structures of the lot in shards by then")
    skipped: dict[str, int] = Field(description="reason -> structures of the lot left out by then")
    done: bool = Field(description="whether this is the end of the lot")


def lots(units: Sequence[Unit], card: DatasetCard) -> list[Lot]:
    sizes = [max(unit.structures, 1e-9) for unit in units]
    wanted = min(LOT, max(1.0, SECONDS / card.seconds_per_structure), ATOMS / card.atoms_per_structure)
    cut = [piece for piece in divided(sizes, math.ceil(sum(sizes) / wanted)) if piece]
    return [
        Lot(number, len(cut), [units[k] for k in piece], sum(sizes[k] for k in piece))
        for number, piece in enumerate(cut)
    ]


def divided(sizes: Sequence[float], pieces: int) -> list[range]:
    """Consecutive indices in so many pieces, equal in the sum of their sizes as near as may be; some may be empty."""
    ends = np.cumsum(sizes)
    place = (ends - np.asarray(sizes) / 2) / max(ends[-1] if len(ends) else 1.0, 1e-300) * max(pieces, 1)
    firsts = np.searchsorted(place, np.arange(max(pieces, 1) + 1))
    firsts[-1] = len(sizes)
    return [range(a, b) for a, b in pairwise(firsts.tolist())]


def notes(folder: Path, lot: int) -> list[Note]:
    """Of a lot's shards, in order, as far as they are there."""
    found = []
    while (path := note_path(folder, lot, len(found))).exists():
        found.append(files.read_model(path, Note))
    return found


def last_note(folder: Path, lot: int) -> Note | None:
    number = 0
    while note_path(folder, lot, number).exists():
        number += 1
    return files.read_model(note_path(folder, lot, number - 1), Note) if number else None


def note_path(folder: Path, lot: int, shard: int) -> Path:
    return folder / "lots" / f"{lot:05}-{shard:03}.json"


def shard_path(folder: Path, lot: int, shard: int) -> Path:
    return folder / "shards" / f"{lot:05}-{shard:03}.bp"


def whole(folder: Path, lot: int) -> list[Note]:
    """The notes whose shards are as they were written, every byte; what comes after one that is not is made again."""
    kept = []
    for number, note in enumerate(notes(folder, lot)):
        path = shard_path(folder, lot, number)
        try:
            if note.entry is not None:
                examine(path, note.entry.shard, check=True)
                if (path / ENTRY).read_text() != note.entry.model_dump_json():
                    break
        except (files.BadFile, OSError):
            break
        kept.append(note)
    return kept


def convert(job: Job, lot: Lot, folder: Path, watch: Callable[[int], None]) -> None:
    """The shards of a lot that are not there yet. `watch` hears of every structure that was read."""
    earlier = whole(folder, lot.number)
    number = len(earlier)
    while (path := note_path(folder, lot.number, number)).exists():  # of shards that were altered
        path.unlink()
        number += 1
    if earlier and earlier[-1].done:
        return
    writer = Writer(job, lot, folder, earlier)
    first, gone = (earlier[-1].unit, earlier[-1].number) if earlier else (0, 0)
    for index in range(first, len(lot.units)):
        writer.read(index, gone if index == first else 0, watch)
    writer.flush(len(lot.units), 0, done=True)


class Writer:
    """The structures of one shard at a time."""

    def __init__(self, job: Job, lot: Lot, folder: Path, earlier: list[Note]):
        self.job, self.lot, self.folder, self.shard = job, lot, folder, len(earlier)
        self.skipped = Counter(earlier[-1].skipped if earlier else {})
        self.kept = earlier[-1].kept if earlier else 0
        self.held: list[Structure] = []
        self.origins: list[tuple[str, int]] = []
        self.atoms = 0

    def read(self, index: int, gone: int, watch: Callable[[int], None]) -> None:
        """One unit, without its first `gone` structures: they, and what was left out among them, are noted already."""
        unit, live = self.lot.units[index], not gone

        def skip(reason: str) -> None:
            if live:
                self.skipped[reason] += 1

        for number, structure in enumerate(self.job.script.structures(self.job.options, unit, skip)):
            if number < gone:
                live = number == gone - 1
                continue
            check(structure, f"{unit.name} number {number}")
            reason = self.job.quarantined.get((unit.name, number))
            if reason is not None:
                self.skipped[f"quarantined: {reason}"] += 1
            else:
                self.held.append(structure)
                self.origins.append((unit.name, number))
                self.atoms += len(structure.numbers)
            watch(1)
            if len(self.held) == adios.SHARD or self.atoms >= ATOMS:
                self.flush(index, number + 1)

    def flush(self, unit: int, number: int, done: bool = False) -> None:
        """What is held becomes a shard; then the note says so."""
        near = coincident(self.held)
        if near.any():
            self.skipped[f"atoms closer than {NEAREST:g} A"] += int(near.sum())
            self.held = [s for s, out in zip(self.held, near) if not out]
            self.origins = [o for o, out in zip(self.origins, near) if not out]
        entry, settings = None, self.job.settings
        if self.held:
            path = shard_path(self.folder, self.lot.number, self.shard)
            path.parent.mkdir(parents=True, exist_ok=True)
            entry = adios.write_shard(path, self.held, settings.split, settings.cutoff, self.origins)
        self.kept += len(self.held)
        note = Note(
            of=self.lot.of,
            entry=entry,
            unit=unit,
            number=number,
            kept=self.kept,
            skipped=dict(sorted(self.skipped.items())),
            done=done,
        )
        files.write_model(note_path(self.folder, self.lot.number, self.shard), note)
        self.shard += 1
        self.held, self.origins, self.atoms = [], [], 0


def check(structure: Structure, where: str) -> None:
    """A label may be NaN where it is lacking; a geometry may not, and shapes must agree."""
    atoms = len(structure.numbers)
    if not atoms or structure.positions.shape != (atoms, 3) or structure.forces.shape != (atoms, 3):
        raise BadRaw(
            f"{where}: {atoms} atoms, but positions {structure.positions.shape} and forces {structure.forces.shape}; "
            "mend the dataset's script"
        )
    if not np.isfinite(structure.positions).all() or not np.isfinite(structure.cell).all():
        raise BadRaw(f"{where}: a position or the cell is not finite")
