"""Duplicate structures within and across splits and sources, on which no held-out error may be measured.

The descriptors of a structure do not change under rotation, reflection, translation, reordering of atoms or another choice
of supercell: they are its composition, and a few means over its atoms of smooth functions of the distances to their
neighbours. Two structures of one composition are *equal* if their descriptors agree to the rounding of float32, and *near*
if they differ by less than displacements of some thousandths of an Angstrom cause. Mirror images are equal. Distances
beyond the cutoff do not count: a model with that cutoff does not distinguish such structures either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from pydantic import Field

from gnnscale.atoms import neighbors
from gnnscale.data.storage import splits
from gnnscale.data.storage.manifest import composition
from gnnscale.data.storage.mapped import Shards
from gnnscale.data.storage.packed import Packed
from gnnscale.schema import Spec

CUTOFF_ANGSTROM = 5.0
WEIGHT_COUNT, ORDER_COUNT = 2, 3  # ways to weigh a pair by its elements, powers of the cosine of its distance
MAX_DIFFERENCE_OF_EQUAL = (
    1e-5  # greatest difference of a value; turned and stored anew, 8000 real structures changed by 2e-6 at most
)
MAX_DIFFERENCE_OF_NEAR = (
    1e-3  # in the median, what a rattle of each coordinate by 0.002 Angstrom does to 3BPA, by 0.007 to MPtrj
)
MIN_CONTRADICTION_EV_PER_ATOM = 1e-3
ATOMS_PER_PIECE = 8000  # described together, as they fit into the cache
STRUCTURES_PER_BLOCK = 8192  # structures read at a time
ATOMIC_NUMBER_COUNT = 119


class Descriptors(NamedTuple):
    """Descriptors of S structures, 32 bytes each."""

    composition: np.ndarray  # (S,) uint64; where it is periodic, of the smallest formula
    values: np.ndarray  # (S, WEIGHTS * ORDERS) float32


class TwinCount(Spec):
    """Numbers of structures that have a twin."""

    equal: int = Field(description="structures with an equal twin")
    near: int = Field(description="structures with a near twin; the equal ones are among them")


class Twins(Spec):
    """Structures of one split of one source that have a twin in one split of this or another source."""

    source: str
    split: str
    twin_source: str
    twin_split: str
    count: TwinCount


class Leakage(Spec):
    """Numbers of duplicates over any number of sources."""

    structures: dict[str, dict[str, int]] = Field(description="source -> split -> number of structures")
    copies: int = Field(description="structures equal to an earlier one")
    contradictions: int = Field(
        description="pairs of equal structures of one source whose energies differ by more than 1 meV/atom"
    )
    leaked: dict[str, dict[str, TwinCount]] = Field(
        description="source -> held-out split -> structures with a twin in any training split"
    )
    twins: tuple[Twins, ...] = Field(description="pairs of splits that have twins, also within one split")


def compute_fingerprints(packed: Packed) -> np.ndarray:
    """Return one number per structure, (S,) uint64, that is the same for equal structures on every machine.

    It serves sets and joins over more data than `count_duplicates` can hold. For one structure in a thousand, a rotated
    copy is rounded to another number; `count_duplicates` does not have this error.
    """
    found = describe_structures(packed)
    value = found.composition.copy()
    for column in np.rint(found.values / (100 * MAX_DIFFERENCE_OF_EQUAL)).astype(np.int64).astype(np.uint64).T:
        value = _mix_bits(value ^ column)
    return value


def count_duplicates(sources: Mapping[str, Shards], parts: Sequence[Descriptors] | None = None) -> Leakage:
    """Compare every structure with every other; this takes 60 bytes of memory per structure.

    `parts`: the descriptors of each source, if they are known.
    """
    if parts is None:
        parts = [describe_structures(packed) for shards in sources.values() for packed in iterate_blocks(shards)]
    described = concatenate_descriptors(parts)
    split = np.concatenate([shards.split for shards in sources.values()]).astype(np.int64)
    source = np.repeat(np.arange(len(sources)), [len(shards) for shards in sources.values()])
    energy = np.concatenate([shards.energy / shards.natoms for shards in sources.values()])
    place, places = len(splits.NAMES) * source + split, len(splits.NAMES) * len(sources)
    codes_of: dict[str, list[np.ndarray]] = {"equal": [], "near": []}
    copies, contradictions = [], 0
    for a, b, equal in find_near_pairs(described):
        for kind, which in (("equal", equal), ("near", slice(None))):
            pair_codes = np.concatenate([a[which] * places + place[b[which]], b[which] * places + place[a[which]]])
            codes_of[kind].append(np.unique(pair_codes))
        copies.append(np.unique(np.maximum(a, b)[equal]))
        contradictions += int(
            (equal & (source[a] == source[b]) & (abs(energy[a] - energy[b]) > MIN_CONTRADICTION_EV_PER_ATOM)).sum()
        )
    codes = {kind: np.unique(np.concatenate([np.empty(0, np.int64), *found])) for kind, found in codes_of.items()}
    tables = {kind: _count_by_place(code, place, places) for kind, code in codes.items()}
    leaks = {kind: _count_trained_on(code, place, places) for kind, code in codes.items()}
    named = [(name, part) for name in sources for part in splits.NAMES]
    sizes = np.bincount(place, minlength=places)
    structures: dict[str, dict[str, int]] = {}
    for k, (name, part) in enumerate(named):
        structures.setdefault(name, {})[part] = int(sizes[k])
    held_out = [part for part in splits.NAMES if part != "train"]
    return Leakage(
        structures=structures,
        copies=len(np.unique(np.concatenate([np.empty(0, np.int64), *copies]))),
        contradictions=contradictions,
        leaked={name: {part: _count_twins(leaks, named.index((name, part))) for part in held_out} for name in sources},
        twins=tuple(
            Twins(
                source=named[k][0],
                split=named[k][1],
                twin_source=named[t][0],
                twin_split=named[t][1],
                count=_count_twins(tables, (k, t)),
            )
            for k, t in np.argwhere(tables["near"]).tolist()
        ),
    )


def _count_by_place(code: np.ndarray, place: np.ndarray, places: int) -> np.ndarray:
    """Return (places, places): structures by their own place and by that of a twin; a place is a split of a source."""
    table = np.zeros((places, places), np.int64)
    np.add.at(table, (place[code // places], code % places), 1)
    return table


def _count_trained_on(code: np.ndarray, place: np.ndarray, places: int) -> np.ndarray:
    """Return (places,): structures that have a twin in any training split."""
    trained_on = np.unique((code // places)[code % places % len(splits.NAMES) == 0])
    return np.bincount(place[trained_on], minlength=places)


def _count_twins(tables: dict[str, np.ndarray], place: int | tuple[int, int]) -> TwinCount:
    return TwinCount(equal=int(tables["equal"][place]), near=int(tables["near"][place]))


def concatenate_descriptors(parts: Sequence[Descriptors]) -> Descriptors:
    return Descriptors(*(np.concatenate(arrays) for arrays in zip(*parts)))


def iterate_blocks(shards: Shards) -> Iterator[Packed]:
    for start in range(0, len(shards), STRUCTURES_PER_BLOCK):
        yield shards.select(np.arange(start, min(start + STRUCTURES_PER_BLOCK, len(shards))))


def find_near_pairs(described: Descriptors) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield all near pairs, each once, as (one, other, is_equal).

    Structures are sorted, and each is compared with the next, the one after the next, and so on.
    """
    first = described.values[:, 0]
    order = np.lexsort((first, described.composition))
    here = np.arange(len(order))
    for step in range(1, len(order)):
        here = here[here + step < len(order)]
        a, b = order[here], order[here + step]
        reached = (described.composition[a] == described.composition[b]) & (
            first[b] - first[a] <= MAX_DIFFERENCE_OF_NEAR
        )
        here, a, b = here[reached], a[reached], b[reached]
        if not len(here):
            return
        apart = np.abs(described.values[a] - described.values[b]).max(1)
        near = apart <= MAX_DIFFERENCE_OF_NEAR
        if near.any():
            yield a[near], b[near], apart[near] <= MAX_DIFFERENCE_OF_EQUAL


# -------------------------------------------------------------------------------------------------- one structure
def describe_structures(packed: Packed) -> Descriptors:
    """Compute the descriptors of all structures.

    Measured on a busy core, per second: 150 thousand molecules of 8 atoms, 26 thousand of 27, 7 thousand dense crystals
    of 31.
    """
    ptr = packed.ptr
    cuts = np.unique(
        [0, *np.searchsorted(ptr, np.arange(ATOMS_PER_PIECE, ptr[-1], ATOMS_PER_PIECE)), len(packed.natoms)]
    )
    values = [_sum_over_pairs(packed, ptr, first, last) for first, last in pairwise(cuts)]
    found = np.concatenate([np.zeros((0, WEIGHT_COUNT * ORDER_COUNT)), *values])
    return Descriptors(_encode_composition(packed), (found / packed.natoms[:, None]).astype(np.float32))


def _sum_over_pairs(packed: Packed, ptr: np.ndarray, first: int, last: int) -> np.ndarray:
    """Return (structures, values), summed over each pair of neighbours twice."""
    atoms, cell, pbc = slice(ptr[first], ptr[last]), packed.cell[first:last], packed.pbc[first:last]
    x, numbers = packed.positions[atoms], packed.numbers[atoms].astype(np.int64)
    edges = neighbors.batch_edges(x, ptr[first : last + 1] - ptr[first], cell, pbc, CUTOFF_ANGSTROM)
    kept = np.flatnonzero(edges.receivers <= edges.senders)  # an atom and its own image come in both directions
    begins = np.searchsorted(kept, edges.ptr)
    i, j = edges.receivers[kept], edges.senders[kept]
    vectors = x[j] - x[i]  # (E, 3)
    if pbc.any():
        shifts, box = edges.shifts[kept], cell[np.repeat(np.arange(last - first), np.diff(begins))]
        vectors += shifts[:, :1] * box[:, 0] + shifts[:, 1:2] * box[:, 1] + shifts[:, 2:] * box[:, 2]
    cosine = np.cos(np.sqrt((vectors**2).sum(1)) * np.float32(np.pi / CUTOFF_ANGSTROM))
    terms = np.empty((ORDER_COUNT, len(kept)), np.float32)
    terms[0] = (1 + cosine) ** 2 * (1 + (i < j))  # goes to zero smoothly at the cutoff
    for k in range(1, ORDER_COUNT):
        terms[k] = terms[k - 1] * cosine
    pair, has = numbers[i] * ATOMIC_NUMBER_COUNT + numbers[j], np.diff(begins) > 0
    found = np.zeros((last - first, WEIGHT_COUNT, ORDER_COUNT))
    if has.any():
        for w in range(WEIGHT_COUNT):
            weighed = terms * PAIR_WEIGHTS[w][pair]
            found[has, w] = np.add.reduceat(weighed, begins[:-1][has], axis=1, dtype=np.float64).T
    return found.reshape(last - first, -1)


def _encode_composition(packed: Packed) -> np.ndarray:
    """Return (S,) uint64, the sum of one random number per atom that depends on its element."""
    elements, counts = composition(packed)
    counts = counts.astype(np.int64)
    periodic = packed.pbc.any(1)
    counts[periodic] //= np.maximum(1, np.gcd.reduce(counts[periodic], axis=1, initial=0))[:, None]
    return _mix_bits(
        (counts.astype(np.uint64) * ELEMENT_CODES[elements]).sum(1, dtype=np.uint64) + periodic.astype(np.uint64)
    )


def _draw_integers(name: str) -> np.ndarray:
    """Return (ATOMIC_NUMBER_COUNT,) uint64, the same on every machine and in every version."""
    digests = [hashlib.sha256(f"{name} {z}".encode()).digest()[:8] for z in range(ATOMIC_NUMBER_COUNT)]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def _mix_bits(values: np.ndarray) -> np.ndarray:
    """Mix the bits of each value, so that each bit of the result depends on all of them: xor-shift and multiply, twice."""
    for factor in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93):
        values = (values ^ (values >> np.uint64(32))) * np.uint64(factor)
    return values ^ (values >> np.uint64(32))


ELEMENT_CODES = _draw_integers("composition")
_ELEMENT_SCALES = [0.5 + _draw_integers(f"weight {w}") / 2.0**64 for w in range(WEIGHT_COUNT)]
PAIR_WEIGHTS = [
    (np.outer(scale, scale) / 4).ravel().astype(np.float32) for scale in _ELEMENT_SCALES
]  # by pair of elements
