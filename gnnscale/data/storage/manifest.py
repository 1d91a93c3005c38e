"""What can be known of shards without opening them: where every array lies, and sums from which a card is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from gnnscale.contract import files
from gnnscale.contract.dataset_card import SplitCount
from gnnscale.data.storage import packed as packing
from gnnscale.data.storage import reference_energies, splits
from gnnscale.data.storage.packed import Packed
from gnnscale.schema import Spec

SCHEMA = "gnnscale.shards/2"
MANIFEST = "manifest.json"
ENTRY = "entry.json"  # inside the directory of each shard
REMAKE = "run the same command again, or, if these shards were made by hand, remove their folder and convert anew"
OLDER = f"made by an older version of gnnscale; {REMAKE}"


class Block(Spec):
    """One variable of a shard, as it lies in data.0: contiguous, little-endian, in C order."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    crc32: tuple[int, ...] = Field(description="zlib's, of each MiB of it")


class File(Spec):
    """One of the files that ADIOS2 writes."""

    size: int
    sha256: str


class Sums(Spec):
    """What normalisation, load balance and planning need of any number of structures; sums of parts are the whole's."""

    structures: int
    counts: dict[str, SplitCount] = Field(description="by split; of a shard, groups that other shards have too count")
    max_atoms: int
    max_edges: int
    elements: dict[int, int] = Field(description="atomic number -> atoms, all splits")
    energies: reference_energies.EnergySums = Field(description="of the training split, where there is an energy")
    forces: int = Field(description="known components of forces in the training split")
    forces_squared: float = Field(description="their sum of squares, eV^2/Angstrom^2")
    energy_per_atom: tuple[float, float] | None = Field(description="eV, least and greatest, all splits")
    content: str = Field(description="digest of all structures in their order, whatever the shards")


class Shard(Spec):
    """A shard as the manifest has it."""

    name: str = Field(description="the BP5 directory, relative to the manifest")
    structures: int
    atoms: int
    units: tuple[str, ...] = Field(description="names of the raw pieces that its structures are of")
    files: dict[str, File]
    variables: dict[str, Block]


class ShardEntry(Spec):
    """entry.json inside a shard, and, but for the digests of its files, its attribute `gnnscale`."""

    format: str = SCHEMA
    cutoff: float = Field(description="Angstrom, at which edges were counted")
    shard: Shard
    sums: Sums


class Manifest(Spec):
    """manifest.json: the shards of a dataset in order. What it does not list is not there."""

    format: str = SCHEMA
    cutoff: float
    shards: tuple[Shard, ...]
    total: Sums


def read(path: Path, kind: type[Manifest] | type[ShardEntry]) -> Manifest | ShardEntry:
    try:
        text = path.read_bytes()
    except OSError:
        raise files.BadFile(f"{path}: missing, so the writing of {path.parent.name} never ended; {REMAKE}") from None
    try:
        found = kind.model_validate_json(text)
    except ValidationError as error:
        if b"gnnscale.shards/" in text and SCHEMA.encode() not in text:
            raise files.BadFile(f"{path}: {OLDER}") from None
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise files.BadFile(f"{path}: unreadable: {where}: {first['msg']}; {REMAKE}") from None
    if found.format != SCHEMA:
        raise files.BadFile(f"{path}: {found.format!r}, {SCHEMA!r} expected: {OLDER}")
    return found


def sums(packed: Packed) -> Sums:
    train = packed.split == splits.NAMES.index("train")
    known = np.isfinite(packed.energy)
    elements, counts = composition(packed)
    forces = packed.forces[np.repeat(train, packed.natoms)].astype(np.float64)
    forces = forces[np.isfinite(forces)]
    per_atom = packed.energy[known] / packed.natoms[known]
    return Sums(
        structures=len(packed.natoms),
        counts={name: _count(packed, packed.split == index) for index, name in enumerate(splits.NAMES)},
        max_atoms=int(packed.natoms.max(initial=0)),
        max_edges=int(packed.nedges.max(initial=0)),
        elements={int(z): int(n) for z, n in zip(elements, counts.sum(0))},
        energies=reference_energies.sums(elements, counts[train & known], packed.energy[train & known]),
        forces=len(forces),
        forces_squared=float((forces**2).sum()),
        energy_per_atom=(float(per_atom.min()), float(per_atom.max())) if len(per_atom) else None,
        content=packing.content(packed),
    )


def add(parts: Sequence[Sums]) -> Sums:
    known = [part.energy_per_atom for part in parts if part.energy_per_atom]
    return Sums(
        structures=sum(part.structures for part in parts),
        counts={name: _together(part.counts[name] for part in parts) for name in splits.NAMES},
        max_atoms=max((part.max_atoms for part in parts), default=0),
        max_edges=max((part.max_edges for part in parts), default=0),
        elements={
            z: sum(part.elements.get(z, 0) for part in parts) for z in sorted({z for p in parts for z in p.elements})
        },
        energies=reference_energies.add(part.energies for part in parts),
        forces=sum(part.forces for part in parts),
        forces_squared=sum(part.forces_squared for part in parts),
        energy_per_atom=(min(low for low, _ in known), max(high for _, high in known)) if known else None,
        content=packing.join_content([(part.content, part.structures) for part in parts]),
    )


def composition(packed: Packed) -> tuple[np.ndarray, np.ndarray]:
    """(atomic numbers present (E,), atoms of each in every structure (S, E))"""
    elements, column = np.unique(packed.numbers, return_inverse=True)
    place = np.repeat(np.arange(len(packed.natoms)) * len(elements), packed.natoms) + column
    counts = np.bincount(place, minlength=len(packed.natoms) * len(elements))
    return elements, counts.reshape(len(packed.natoms), -1).astype(np.float64)


def _count(packed: Packed, chosen: np.ndarray) -> SplitCount:
    return SplitCount(
        structures=int(chosen.sum()),
        groups=len(np.unique(packed.group[chosen])),
        atoms=int(packed.natoms[chosen].sum()),
        edges=int(packed.nedges[chosen].sum(dtype=np.int64)),
    )


def _together(counts: Iterable[SplitCount]) -> SplitCount:
    counts = list(counts)
    return SplitCount(**{name: sum(getattr(c, name) for c in counts) for name in SplitCount.model_fields})
