"""Which structures are the same, within and across splits and sources: what no held-out error may be measured on.

A structure is described by what no rotation, reflection, translation, order of atoms or choice of supercell changes: its
composition, and a few means over its atoms of smooth functions of the distances to their neighbours. Two of the same
composition are *equal* if these agree to the rounding of float32, and *near* if they differ by less than a rattle of some
thousandths of an Angstrom makes. Mirror images are equal, and what lies more than CUTOFF apart is not seen: to a model
with that cutoff it is the same as well.
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

CUTOFF_ANGSTROM = 5.0  # Angstrom
WEIGHT_COUNT, ORDER_COUNT = 2, 3  # ways to weigh a pair by its elements, powers of the cosine of its distance
MAX_DIFFERENCE_OF_EQUAL = (
    1e-5  # greatest difference of a value; turned and stored anew, 8000 real structures changed by 2e-6 at most
)
MAX_DIFFERENCE_OF_NEAR = (
    1e-3  # in the median, what a rattle of each coordinate by 0.002 Angstrom does to 3BPA, by 0.007 to MPtrj
)
MIN_CONTRADICTION_EV_PER_ATOM = 1e-3  # eV/atom
ATOMS_PER_PIECE = 8000  # described at a time: what stays in the cache
STRUCTURES_PER_BLOCK = 8192  # structures read at a time
ATOMIC_NUMBER_COUNT = 119


class Descriptors(NamedTuple):
    """S structures in 32 bytes each."""

    composition: np.ndarray  # (S,) uint64; where it is periodic, of the smallest formula
    values: np.ndarray  # (S, WEIGHTS * ORDERS) float32


class TwinCount(Spec):
    """A number of structures that have a twin."""

    equal: int = Field(description="one that is the same")
    near: int = Field(description="one that is the same, or nearly")


class Twins(Spec):
    """Structures of one split of one source that have a twin in a split of this or another source."""

    source: str
    split: str
    twin_source: str
    twin_split: str
    count: TwinCount


class Leakage(Spec):
    """Duplicates over any number of sources."""

    structures: dict[str, dict[str, int]] = Field(description="source -> split -> how many there are")
    copies: int = Field(description="structures equal to an earlier one")
    contradictions: int = Field(description="pairs of equal ones in one source with energies over 1 meV/atom apart")
    leaked: dict[str, dict[str, TwinCount]] = Field(
        description="source -> held-out split -> with a twin in any training split"
    )
    twins: tuple[Twins, ...] = Field(description="those that there are, also within one split")


def compute_fingerprints(packed: Packed) -> np.ndarray:
    """(S,) uint64: one number that equal structures have in common, on every machine, and hardly ever others.

    For sets and joins over more data than `report` can hold. A copy in another frame is rounded to another number in
    one of a thousand structures, which `report` has no trouble with.
    """
    found = describe_structures(packed)
    value = found.composition.copy()
    for column in np.rint(found.values / (100 * MAX_DIFFERENCE_OF_EQUAL)).astype(np.int64).astype(np.uint64).T:
        value = _mix_bits(value ^ column)
    return value


def count_duplicates(sources: Mapping[str, Shards], parts: Sequence[Descriptors] | None = None) -> Leakage:
    """Every structure against every other. In memory: 60 bytes a structure. `parts`: of each source, where it is known."""
    if parts is None:
        parts = [describe_structures(packed) for shards in sources.values() for packed in iterate_blocks(shards)]
    described = concatenate_descriptors(parts)
    split = np.concatenate([shards.split for shards in sources.values()]).astype(np.int64)
    source = np.repeat(np.arange(len(sources)), [len(shards) for shards in sources.values()])
    energy = np.concatenate([shards.energy / shards.natoms for shards in sources.values()])
    place, places = len(splits.NAMES) * source + split, len(splits.NAMES) * len(sources)
    seen, copies, contradictions = {"equal": [], "near": []}, [], 0
    for a, b, equal in find_near_pairs(described):
        for kind, which in (("equal", equal), ("near", slice(None))):
            codes = np.concatenate([a[which] * places + place[b[which]], b[which] * places + place[a[which]]])
            seen[kind].append(np.unique(codes))
        copies.append(np.unique(np.maximum(a, b)[equal]))
        contradictions += int(
            (equal & (source[a] == source[b]) & (abs(energy[a] - energy[b]) > MIN_CONTRADICTION_EV_PER_ATOM)).sum()
        )
    codes = {kind: np.unique(np.concatenate([np.empty(0, np.int64), *found])) for kind, found in seen.items()}
    tables = {kind: np.zeros((places, places), np.int64) for kind in codes}
    leaks = {}
    for kind, code in codes.items():
        structure, twin = code // places, code % places
        np.add.at(tables[kind], (place[structure], twin), 1)
        trained_on = np.unique(structure[twin % len(splits.NAMES) == 0])
        leaks[kind] = np.bincount(place[trained_on], minlength=places)
    named = [(name, part) for name in sources for part in splits.NAMES]
    sizes, whole = np.bincount(place, minlength=places), {}
    for k, (name, part) in enumerate(named):
        whole.setdefault(name, {})[part] = int(sizes[k])
    return Leakage(
        structures=whole,
        copies=len(np.unique(np.concatenate([np.empty(0, np.int64), *copies]))),
        contradictions=contradictions,
        leaked={
            name: {part: _count_twins(leaks, named.index((name, part))) for part in splits.NAMES if part != "train"}
            for name in sources
        },
        twins=tuple(
            Twins(
                source=named[k][0],
                split=named[k][1],
                twin_source=named[t][0],
                twin_split=named[t][1],
                count=_count_twins(tables, (k, t)),
            )
            for k, t in zip(*np.nonzero(tables["near"]))
        ),
    )


def _count_twins(tables: dict[str, np.ndarray], place: int | tuple[int, int]) -> TwinCount:
    return TwinCount(equal=int(tables["equal"][place]), near=int(tables["near"][place]))


def concatenate_descriptors(parts: Sequence[Descriptors]) -> Descriptors:
    return Descriptors(*(np.concatenate(arrays) for arrays in zip(*parts)))


def iterate_blocks(shards: Shards) -> Iterator[Packed]:
    for start in range(0, len(shards), STRUCTURES_PER_BLOCK):
        yield shards.select(np.arange(start, min(start + STRUCTURES_PER_BLOCK, len(shards))))


def find_near_pairs(described: Descriptors) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(one, other, whether equal) of all pairs that are near, each once: by sorting, then with the next, the one after, ..."""
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
    """On a busy core 150 thousand molecules of 8 atoms a second, 26 thousand of 27, 7 thousand dense crystals of 31."""
    ptr = packed.ptr
    cuts = np.unique(
        [0, *np.searchsorted(ptr, np.arange(ATOMS_PER_PIECE, ptr[-1], ATOMS_PER_PIECE)), len(packed.natoms)]
    )
    values = [_sum_over_pairs(packed, ptr, first, last) for first, last in pairwise(cuts)]
    found = np.concatenate([np.zeros((0, WEIGHT_COUNT * ORDER_COUNT)), *values])
    return Descriptors(_encode_composition(packed), (found / packed.natoms[:, None]).astype(np.float32))


def _sum_over_pairs(packed: Packed, ptr: np.ndarray, first: int, last: int) -> np.ndarray:
    """(structures, values), over each pair of neighbours twice"""
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
    """(S,) uint64: a sum of numbers drawn for each element"""
    elements, counts = composition(packed)
    counts = counts.astype(np.int64)
    periodic = packed.pbc.any(1)
    counts[periodic] //= np.maximum(1, np.gcd.reduce(counts[periodic], axis=1, initial=0))[:, None]
    return _mix_bits(
        (counts.astype(np.uint64) * ELEMENT_CODES[elements]).sum(1, dtype=np.uint64) + periodic.astype(np.uint64)
    )


def _draw_integers(name: str) -> np.ndarray:
    """(ELEMENTS,) uint64, the same everywhere and for ever"""
    digests = [hashlib.sha256(f"{name} {z}".encode()).digest()[:8] for z in range(ATOMIC_NUMBER_COUNT)]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def _mix_bits(values: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of the value: two rounds of xor-shift and an odd factor."""
    for factor in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93):
        values = (values ^ (values >> np.uint64(32))) * np.uint64(factor)
    return values ^ (values >> np.uint64(32))


ELEMENT_CODES = _draw_integers("composition")
_ELEMENT_SCALES = [0.5 + _draw_integers(f"weight {w}") / 2.0**64 for w in range(WEIGHT_COUNT)]
PAIR_WEIGHTS = [
    (np.outer(scale, scale) / 4).ravel().astype(np.float32) for scale in _ELEMENT_SCALES
]  # by pair of elements
