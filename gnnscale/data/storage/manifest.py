"""Descriptions of shards: where every array lies, and sums from which a card is made without opening the shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import Field, ValidationError

from gnnscale.contract import errors
from gnnscale.contract.dataset_card import SplitCount
from gnnscale.data.storage import reference_energies, splits
from gnnscale.data.storage.packed import Packed, content_digest, join_digests
from gnnscale.schema import Record

SCHEMA = "gnnscale.shards/3"
MANIFEST = "manifest.json"
ENTRY = "entry.json"  # inside the directory of each shard
HOW_TO_REMAKE = (
    "run the same command again, or, if these shards were made by hand, remove their folder and convert anew"
)
OLDER_VERSION = f"made by an older version of gnnscale; {HOW_TO_REMAKE}"


class StoredArray(Record):
    """One variable of a shard in data.0: contiguous, little-endian, in C order."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    crc32: tuple[int, ...] = Field(description="zlib's CRC-32 of each MiB")


class StoredFile(Record):
    """One of the files that ADIOS2 wrote."""

    size: int
    sha256: str


class ShardSums(Record):
    """Sums over structures, for normalisation, load balance and planning; the sums of parts add up to those of the whole."""

    structures: int
    counts: dict[str, SplitCount] = Field(
        description="by split; in a shard, groups that other shards have too are counted"
    )
    max_atoms: int
    max_edges: int
    elements: dict[int, int] = Field(description="atomic number -> atoms, all splits")
    trained_elements: tuple[int, ...] = Field(description="atomic numbers of the training split")
    energies: reference_energies.EnergySums = Field(
        description="of the structures of the training split that have an energy"
    )
    forces: int = Field(description="number of known force components in the training split")
    forces_squared: float = Field(description="their sum of squares, eV^2/Angstrom^2")
    energy_per_atom: tuple[float, float] | None = Field(description="eV, least and greatest, all splits")
    content: str = Field(description="digest of all structures in order, independent of the shards")


class Shard(Record):
    """A shard as the manifest describes it."""

    name: str = Field(description="the BP5 directory, relative to the manifest")
    structures: int
    atoms: int
    units: tuple[str, ...] = Field(description="names of the pieces of raw files from which its structures come")
    files: dict[str, StoredFile]
    variables: dict[str, StoredArray]


class ShardEntry(Record):
    """The content of entry.json inside a shard; its attribute `gnnscale` holds the same without the digests of files."""

    format: str = SCHEMA
    cutoff: float = Field(description="Angstrom, within which edges were counted")
    shard: Shard
    sums: ShardSums


class Manifest(Record):
    """The content of manifest.json: the shards of a dataset in order. A shard that is not listed does not count."""

    format: str = SCHEMA
    cutoff: float
    shards: tuple[Shard, ...]
    total: ShardSums


Description = TypeVar("Description", Manifest, ShardEntry)


def read_checked(path: Path, kind: type[Description]) -> Description:
    """Read a manifest or entry; one that is missing, broken or of an older version is a BadFile."""
    try:
        text = path.read_bytes()
    except OSError:
        raise errors.BadFile(
            f"{path}: missing: the conversion that writes {path.parent.name} has not finished; {HOW_TO_REMAKE}"
        ) from None
    try:
        found = kind.model_validate_json(text)
    except ValidationError as error:
        if b"gnnscale.shards/" in text and SCHEMA.encode() not in text:
            raise errors.BadFile(f"{path}: {OLDER_VERSION}") from None
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise errors.BadFile(f"{path}: unreadable: {where}: {first['msg']}; {HOW_TO_REMAKE}") from None
    if found.format != SCHEMA:
        raise errors.BadFile(f"{path}: {found.format!r}, {SCHEMA!r} expected: {OLDER_VERSION}")
    return found


def sum_up(packed: Packed) -> ShardSums:
    """Return the sums over these structures."""
    train = packed.split == splits.NAMES.index("train")
    known = np.isfinite(packed.energy)
    elements, counts = composition(packed)
    forces = packed.forces[np.repeat(train, packed.natoms)].astype(np.float64)
    forces = forces[np.isfinite(forces)]
    per_atom = packed.energy[known] / packed.natoms[known]
    return ShardSums(
        structures=len(packed.natoms),
        counts={name: _count(packed, packed.split == index) for index, name in enumerate(splits.NAMES)},
        max_atoms=int(packed.natoms.max(initial=0)),
        max_edges=int(packed.nedges.max(initial=0)),
        elements={int(z): int(n) for z, n in zip(elements, counts.sum(0))},
        trained_elements=tuple(int(z) for z in elements[counts[train].any(0)]),
        energies=reference_energies.sum_energies(elements, counts[train & known], packed.energy[train & known]),
        forces=len(forces),
        forces_squared=float((forces**2).sum()),
        energy_per_atom=(float(per_atom.min()), float(per_atom.max())) if len(per_atom) else None,
        content=content_digest(packed),
    )


def add_sums(parts: Sequence[ShardSums]) -> ShardSums:
    """Return the sums over the structures of all parts, in order."""
    known = [part.energy_per_atom for part in parts if part.energy_per_atom]
    return ShardSums(
        structures=sum(part.structures for part in parts),
        counts={name: _add_counts(part.counts[name] for part in parts) for name in splits.NAMES},
        max_atoms=max((part.max_atoms for part in parts), default=0),
        max_edges=max((part.max_edges for part in parts), default=0),
        elements={
            z: sum(part.elements.get(z, 0) for part in parts) for z in sorted({z for p in parts for z in p.elements})
        },
        trained_elements=tuple(sorted({z for part in parts for z in part.trained_elements})),
        energies=reference_energies.add_energy_sums(part.energies for part in parts),
        forces=sum(part.forces for part in parts),
        forces_squared=sum(part.forces_squared for part in parts),
        energy_per_atom=(min(low for low, _ in known), max(high for _, high in known)) if known else None,
        content=join_digests([(part.content, part.structures) for part in parts]),
    )


def composition(packed: Packed) -> tuple[np.ndarray, np.ndarray]:
    """Return the atomic numbers that occur (E,), and how many atoms of each every structure has (S, E)."""
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


def _add_counts(parts: Iterable[SplitCount]) -> SplitCount:
    counts = list(parts)
    return SplitCount(**{name: sum(getattr(c, name) for c in counts) for name in SplitCount.model_fields})
