"""Many structures as a few flat arrays, which pass between conversion, shards and batches, and their form on disk.

A molecule takes about 30 bytes on disk, a crystal 36 more for its cell (equal cells of a shard are stored once), 1 or 2
to refer to it, and 24 for its stress; an atom takes 25. Edges are not stored: they are found faster than they are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gnnscale.atoms import neighbors
from gnnscale.atoms.structure import Structure
from gnnscale.contract.dataset_card import Split
from gnnscale.data.storage import splits

PER_ATOM = ("numbers", "positions", "forces")
HAS_CELL, HAS_STRESS = 8, 16  # bits of `flags`; 1, 2, 4 are pbc
SIX_TO_NINE = np.array([0, 5, 4, 5, 1, 3, 4, 3, 2])  # xx yy zz yz xz xy -> the nine components of a matrix
NINE_TO_SIX = np.array([0, 4, 8, 5, 2, 1])
DIGEST_MODULUS = 2**127 - 1  # prime
DIGEST_FACTOR = int.from_bytes(hashlib.sha256(b"gnnscale content").digest()[:15], "little")


class Packed(NamedTuple):
    """S structures with A atoms in total. Structure k has the atoms ptr[k] to ptr[k + 1]."""

    numbers: np.ndarray  # (A,) uint8
    positions: np.ndarray  # (A, 3) float32, Angstrom
    forces: np.ndarray  # (A, 3) float32, eV/Angstrom
    natoms: np.ndarray  # (S,) int32
    energy: np.ndarray  # (S,) float64, eV, total
    cell: np.ndarray  # (S, 3, 3) float32, Angstrom
    pbc: np.ndarray  # (S, 3) uint8
    stress: np.ndarray  # (S, 3, 3) float32, eV/Angstrom^3
    group: np.ndarray  # (S,) int64, hash of the group's name
    split: np.ndarray  # (S,) uint8, index into splits.NAMES
    nedges: np.ndarray  # (S,) uint32, directed, at the cutoff of the conversion
    origin: np.ndarray  # (S, 2) uint32: index into the names of the pieces, and number of the structure in that piece

    @property
    def ptr(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.natoms, dtype=np.int64)])


def pack(
    structures: Sequence[Structure], split: Split, cutoff: float, origins: Sequence[tuple[str, int]] | None = None
) -> tuple[Packed, tuple[str, ...]]:
    """Return the structures packed, and the names of their pieces; origins[k] is the piece of structure k and its number."""
    origins = origins if origins is not None else [("", k) for k in range(len(structures))]
    names = {name: index for index, name in enumerate(dict.fromkeys(name for name, _ in origins))}
    natoms = np.array([len(s.numbers) for s in structures], np.int32)
    packed = Packed(
        numbers=np.concatenate([s.numbers for s in structures]).astype(np.uint8),
        positions=np.concatenate([s.positions for s in structures]).astype(np.float32),
        forces=np.concatenate([s.forces for s in structures]).astype(np.float32),
        natoms=natoms,
        energy=np.array([s.energy for s in structures], np.float64),
        cell=np.stack([s.cell for s in structures]).astype(np.float32),
        pbc=np.stack([s.pbc for s in structures]).astype(np.uint8),
        stress=np.stack([s.stress for s in structures]).astype(np.float32),
        group=np.array([_group(s.group) for s in structures], np.int64),
        split=np.array(
            [splits.published_split(s.split) if s.split is not None else _drawn(s.group, split) for s in structures],
            np.uint8,
        ),
        nedges=np.zeros(len(structures), np.uint32),
        origin=np.array([(names[name], number) for name, number in origins], np.uint32),
    )
    counted = neighbors.count_edges(packed.positions, packed.ptr, packed.cell, packed.pbc, cutoff)
    return packed._replace(nedges=counted.astype(np.uint32)), tuple(names)


_group = lru_cache(1024)(splits.group_hash)  # structures of one group follow each other
_drawn = lru_cache(1024)(splits.split_of)


def to_arrays(packed: Packed) -> dict[str, np.ndarray]:
    """Return the arrays of a shard without the empty ones; integers are as narrow as their values allow."""
    cells, stresses = packed.cell.reshape(-1, 9), packed.stress.reshape(-1, 9)
    has_cell, has_stress = cells.any(1), ~np.isnan(stresses).all(1)
    unique, row = np.unique(cells[has_cell].view("V36").ravel(), return_inverse=True)
    stress = stresses[has_stress]
    if np.array_equal(stress[:, NINE_TO_SIX][:, SIX_TO_NINE].view(np.uint32), stress.view(np.uint32)):
        stress = stress[:, NINE_TO_SIX]
    arrays = {
        "positions": packed.positions,
        "forces": packed.forces,
        "energy": packed.energy,
        "group": packed.group,
        "cell": unique.view(np.float32).reshape(-1, 9),
        "stress": stress,
        "nedges": packed.nedges,
        "number": packed.origin[:, 1],
        "unit": narrow(packed.origin[:, 0]),
        "natoms": narrow(packed.natoms),
        "cell_row": narrow(row.ravel()),
        "numbers": packed.numbers,
        "split": packed.split,
        "flags": (packed.pbc @ np.array([1, 2, 4]) + HAS_CELL * has_cell + HAS_STRESS * has_stress).astype(np.uint8),
    }
    return {name: np.ascontiguousarray(array) for name, array in arrays.items() if array.size}


def from_arrays(arrays: dict[str, np.ndarray]) -> Packed:
    """Return the structures of which `to_arrays` made these arrays."""
    flags = arrays["flags"]
    cell = np.zeros((len(flags), 9), np.float32)
    stress = np.full((len(flags), 9), np.nan, np.float32)
    if "cell" in arrays:
        cell[flags & HAS_CELL > 0] = arrays["cell"][arrays["cell_row"]]
    if "stress" in arrays:
        stress[flags & HAS_STRESS > 0] = arrays["stress"][
            :, SIX_TO_NINE if arrays["stress"].shape[1] == 6 else slice(9)
        ]
    return Packed(
        numbers=arrays["numbers"],
        positions=arrays["positions"],
        forces=arrays["forces"],
        natoms=arrays["natoms"].astype(np.int32),
        energy=arrays["energy"],
        cell=cell.reshape(-1, 3, 3),
        pbc=unpack_pbc(flags),
        stress=stress.reshape(-1, 3, 3),
        group=arrays["group"],
        split=arrays["split"],
        nedges=arrays["nedges"],
        origin=np.stack([arrays["unit"].astype(np.uint32), arrays["number"]], axis=1),
    )


def narrow(values: np.ndarray) -> np.ndarray:
    return values.astype(np.min_scalar_type(values.max(initial=0)))


def unpack_pbc(flags: np.ndarray) -> np.ndarray:
    """Return the periodicity along each lattice vector: (S, 3) uint8."""
    return (flags[:, None] >> np.arange(3, dtype=np.uint8)) & np.uint8(1)


def content_digest(packed: Packed) -> str:
    """Return the digest of the structures in order, whatever shards they are in, without their origin and edge count.

    It is a polynomial in the digests of the structures, so the digests of two parts give that of the whole.
    """
    value, ptr = 0, packed.ptr
    fixed = [packed.energy, packed.cell, packed.pbc, packed.stress, packed.group, packed.split]
    rows = np.concatenate([np.ascontiguousarray(a).reshape(len(a), -1).view(np.uint8) for a in fixed], axis=1)
    atoms = [packed.numbers, packed.positions, packed.forces]
    for k in range(len(packed.natoms)):
        one = hashlib.blake2b(rows[k].tobytes(), digest_size=16)
        for array in atoms:
            one.update(array[ptr[k] : ptr[k + 1]].tobytes())
        value = (value * DIGEST_FACTOR + int.from_bytes(one.digest(), "little")) % DIGEST_MODULUS
    return f"{value:032x}"


def join_digests(parts: Sequence[tuple[str, int]]) -> str:
    """Return the digest of the whole from (digest, number of structures) of its parts, in order."""
    value = 0
    for digest, structures in parts:
        value = (value * pow(DIGEST_FACTOR, structures, DIGEST_MODULUS) + int(digest, 16)) % DIGEST_MODULUS
    return f"{value:032x}"


def concatenate(parts: Sequence[Packed]) -> Packed:
    return Packed(*(np.concatenate(arrays) for arrays in zip(*parts)))


def concatenate_ranges(begin: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the indices begin[k], begin[k] + 1, ..., lengths[k] of them, for every k, without a loop."""
    return np.arange(lengths.sum()) + np.repeat(begin - (np.cumsum(lengths) - lengths), lengths)
