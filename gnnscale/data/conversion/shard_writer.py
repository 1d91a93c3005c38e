"""Writing the shards of one work item, one at a time, each followed by its note."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from gnnscale.atoms.structure import Structure
from gnnscale.contract import files
from gnnscale.data.conversion.overlapping_atoms import MIN_DISTANCE, find_overlapping
from gnnscale.data.conversion.reading import Origin
from gnnscale.data.conversion.shard_notes import Note, Position, keep_whole_shards, note_path, shard_path
from gnnscale.data.conversion.work_items import MAX_SHARD_ATOMS, Conversion, WorkItem
from gnnscale.data.storage import adios
from gnnscale.data.storage.manifest import ShardEntry

REFERENCE = "isolated atom: its energy is the reference of its element"


class ShardWriter:
    """The structures held for the next shard of a work item. It begins after the shards of an earlier attempt."""

    def __init__(self, conversion: Conversion, item: WorkItem, folder: Path):
        self.settings, self.item, self.folder = conversion.settings, item, folder
        earlier = keep_whole_shards(folder, item.number)
        last = earlier[-1] if earlier else None
        self.shard = len(earlier)
        self.is_done = last is not None and last.done
        self.position = last.position if last else Position()
        self.kept = last.kept if last else 0
        self.skipped: Counter[str] = Counter(last.skipped if last else {})
        self.references = dict(last.references if last else {})
        self.published = last is not None and last.published
        self.clear()

    def clear(self) -> None:
        self.held: list[Structure] = []
        self.origins: list[Origin] = []
        self.atoms = 0

    def add(self, structure: Structure, origin: Origin) -> None:
        """Hold a structure for the next shard, or note the energy of an isolated atom."""
        if structure.is_reference:
            self.note_reference(structure)
            return
        self.published |= structure.split is not None
        self.held.append(self.settle(structure, origin))
        self.origins.append(origin)
        self.atoms += len(structure.numbers)

    def note_reference(self, atom: Structure) -> None:
        self.skipped[REFERENCE] += 1
        symbol = chemical_symbols[atom.numbers[0]]
        if np.isfinite(atom.energy):
            self.references[symbol] = min(atom.energy, self.references.get(symbol, atom.energy))

    def settle(self, structure: Structure, origin: Origin) -> Structure:
        """Return the structure with the group and the split that the settings ask for."""
        if self.settings.test_of is not None:
            structure = structure._replace(split="test")
        if self.settings.split.by == "frame":
            structure = structure._replace(group=f"{origin[0]} {origin[1]}")
        return structure

    @property
    def is_full(self) -> bool:
        return len(self.held) == adios.STRUCTURES_PER_SHARD or self.atoms >= MAX_SHARD_ATOMS

    def write(self, position: Position, done: bool = False) -> None:
        """Split what is held into training, validation and test, write it as a shard, and note it."""
        self.drop_overlapping()
        entry = self.write_shard() if self.held else None
        self.kept += len(self.held)
        note = Note(
            total=self.item.total,
            entry=entry,
            position=position,
            kept=self.kept,
            skipped=dict(sorted(self.skipped.items())),
            references=self.references,
            published=self.published,
            done=done,
        )
        files.write_model(note_path(self.folder, self.item.number, self.shard), note)
        self.shard += 1
        self.clear()

    def drop_overlapping(self) -> None:
        """Leave out structures of which two atoms are nearly at one place."""
        near = find_overlapping(self.held)
        if near.any():
            self.skipped[f"atoms closer than {MIN_DISTANCE:g} A"] += int(near.sum())
            self.held = [structure for structure, out in zip(self.held, near) if not out]
            self.origins = [origin for origin, out in zip(self.origins, near) if not out]

    def write_shard(self) -> ShardEntry:
        path = shard_path(self.folder, self.item.number, self.shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        return adios.write_shard(path, self.held, self.settings.split, self.settings.cutoff, self.origins)
