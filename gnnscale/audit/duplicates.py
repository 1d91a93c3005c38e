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

CUTOFF = 5.0  # Angstrom
WEIGHTS, ORDERS = 2, 3  # ways to weigh a pair by its elements, powers of the cosine of its distance
EQUAL = 1e-5  # greatest difference of a value; turned and stored anew, 8000 real structures changed by 2e-6 at most
NEAR = 1e-3  # in the median, what a rattle of each coordinate by 0.002 Angstrom does to 3BPA, by 0.007 to MPtrj
CONTRADICTION = 1e-3  # eV/atom
ATOMS = 8000  # described at a time: what stays in the cache
BLOCK = 8192  # structures read at a time
ELEMENTS = 119


class Described(NamedTuple):
    """S structures in 32 bytes each."""

    composition: np.ndarray  # (S,) uint64; where it is periodic, of the smallest formula
    values: np.ndarray  # (S, WEIGHTS * ORDERS) float32


class Found(Spec):
    """A number of structures that have a twin."""

    equal: int = Field(description="one that is the same")
    near: int = Field(description="one that is the same, or nearly")


class Twins(Spec):
    """Structures of one split of one source that have a twin in a split of this or another source."""

    source: str
    split: str
    twin_source: str
    twin_split: str
    count: Found


class Leakage(Spec):
    """Duplicates over any number of sources."""

    structures: dict[str, dict[str, int]] = Field(description="source -> split -> how many there are")
    copies: int = Field(description="structures equal to an earlier one")
    contradictions: int = Field(description="pairs of equal ones in one source with energies over 1 meV/atom apart")
    leaked: dict[str, dict[str, Found]] = Field(
        description="source -> held-out split -> with a twin in any training split"
    )
    twins: tuple[Twins, ...] = Field(description="those that there are, also within one split")


def fingerprints(packed: Packed) -> np.ndarray:
    """(S,) uint64: one number that equal structures have in common, on every machine, and hardly ever others.

    For sets and joins over more data than `report` can hold. A copy in another frame is rounded to another number in
    one of a thousand structures, which `report` has no trouble with.
    """
    found = describe(packed)
    value = found.composition.copy()
    for column in np.rint(found.values / (100 * EQUAL)).astype(np.int64).astype(np.uint64).T:
        value = _mixed(value ^ column)
    return value


def report(sources: Mapping[str, Shards], parts: Sequence[Described] | None = None) -> Leakage:
    """Every structure against every other. In memory: 60 bytes a structure. `parts`: of each source, where it is known."""
    if parts is None:
        parts = [describe(packed) for shards in sources.values() for packed in blocks(shards)]
    described = joined(parts)
    split = np.concatenate([shards.split for shards in sources.values()]).astype(np.int64)
    source = np.repeat(np.arange(len(sources)), [len(shards) for shards in sources.values()])
    energy = np.concatenate([shards.energy / shards.natoms for shards in sources.values()])
    place, places = len(splits.NAMES) * source + split, len(splits.NAMES) * len(sources)
    seen, copies, contradictions = {"equal": [], "near": []}, [], 0
    for a, b, equal in pairs(described):
        for kind, which in (("equal", equal), ("near", slice(None))):
            codes = np.concatenate([a[which] * places + place[b[which]], b[which] * places + place[a[which]]])
            seen[kind].append(np.unique(codes))
        copies.append(np.unique(np.maximum(a, b)[equal]))
        contradictions += int((equal & (source[a] == source[b]) & (abs(energy[a] - energy[b]) > CONTRADICTION)).sum())
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
            name: {part: _found(leaks, named.index((name, part))) for part in splits.NAMES if part != "train"}
            for name in sources
        },
        twins=tuple(
            Twins(
                source=named[k][0],
                split=named[k][1],
                twin_source=named[t][0],
                twin_split=named[t][1],
                count=_found(tables, (k, t)),
            )
            for k, t in zip(*np.nonzero(tables["near"]))
        ),
    )


def _found(tables: dict[str, np.ndarray], place: int | tuple[int, int]) -> Found:
    return Found(equal=int(tables["equal"][place]), near=int(tables["near"][place]))


def joined(parts: Sequence[Described]) -> Described:
    return Described(*(np.concatenate(arrays) for arrays in zip(*parts)))


def blocks(shards: Shards) -> Iterator[Packed]:
    for start in range(0, len(shards), BLOCK):
        yield shards.select(np.arange(start, min(start + BLOCK, len(shards))))


def pairs(described: Described) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(one, other, whether equal) of all pairs that are near, each once: by sorting, then with the next, the one after, ..."""
    first = described.values[:, 0]
    order = np.lexsort((first, described.composition))
    here = np.arange(len(order))
    for step in range(1, len(order)):
        here = here[here + step < len(order)]
        a, b = order[here], order[here + step]
        reached = (described.composition[a] == described.composition[b]) & (first[b] - first[a] <= NEAR)
        here, a, b = here[reached], a[reached], b[reached]
        if not len(here):
            return
        apart = np.abs(described.values[a] - described.values[b]).max(1)
        near = apart <= NEAR
        if near.any():
            yield a[near], b[near], apart[near] <= EQUAL


# -------------------------------------------------------------------------------------------------- one structure
def describe(packed: Packed) -> Described:
    """On a busy core 150 thousand molecules of 8 atoms a second, 26 thousand of 27, 7 thousand dense crystals of 31."""
    ptr = packed.ptr
    cuts = np.unique([0, *np.searchsorted(ptr, np.arange(ATOMS, ptr[-1], ATOMS)), len(packed.natoms)])
    values = [_sums(packed, ptr, first, last) for first, last in pairwise(cuts)]
    found = np.concatenate([np.zeros((0, WEIGHTS * ORDERS)), *values])
    return Described(_composition(packed), (found / packed.natoms[:, None]).astype(np.float32))


def _sums(packed: Packed, ptr: np.ndarray, first: int, last: int) -> np.ndarray:
    """(structures, values), over each pair of neighbours twice"""
    atoms, cell, pbc = slice(ptr[first], ptr[last]), packed.cell[first:last], packed.pbc[first:last]
    x, numbers = packed.positions[atoms], packed.numbers[atoms].astype(np.int64)
    edges = neighbors.batch_edges(x, ptr[first : last + 1] - ptr[first], cell, pbc, CUTOFF)
    kept = np.flatnonzero(edges.receivers <= edges.senders)  # an atom and its own image come in both directions
    begins = np.searchsorted(kept, edges.ptr)
    i, j = edges.receivers[kept], edges.senders[kept]
    vectors = x[j] - x[i]  # (E, 3)
    if pbc.any():
        shifts, box = edges.shifts[kept], cell[np.repeat(np.arange(last - first), np.diff(begins))]
        vectors += shifts[:, :1] * box[:, 0] + shifts[:, 1:2] * box[:, 1] + shifts[:, 2:] * box[:, 2]
    cosine = np.cos(np.sqrt((vectors**2).sum(1)) * np.float32(np.pi / CUTOFF))
    terms = np.empty((ORDERS, len(kept)), np.float32)
    terms[0] = (1 + cosine) ** 2 * (1 + (i < j))  # goes to zero smoothly at the cutoff
    for k in range(1, ORDERS):
        terms[k] = terms[k - 1] * cosine
    pair, has = numbers[i] * ELEMENTS + numbers[j], np.diff(begins) > 0
    found = np.zeros((last - first, WEIGHTS, ORDERS))
    if has.any():
        for w in range(WEIGHTS):
            weighed = terms * PAIR_WEIGHTS[w][pair]
            found[has, w] = np.add.reduceat(weighed, begins[:-1][has], axis=1, dtype=np.float64).T
    return found.reshape(last - first, -1)


def _composition(packed: Packed) -> np.ndarray:
    """(S,) uint64: a sum of numbers drawn for each element"""
    elements, counts = composition(packed)
    counts = counts.astype(np.int64)
    periodic = packed.pbc.any(1)
    counts[periodic] //= np.maximum(1, np.gcd.reduce(counts[periodic], axis=1, initial=0))[:, None]
    return _mixed(
        (counts.astype(np.uint64) * OF_ELEMENT[elements]).sum(1, dtype=np.uint64) + periodic.astype(np.uint64)
    )


def _drawn(name: str) -> np.ndarray:
    """(ELEMENTS,) uint64, the same everywhere and for ever"""
    digests = [hashlib.sha256(f"{name} {z}".encode()).digest()[:8] for z in range(ELEMENTS)]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of the value: two rounds of xor-shift and an odd factor."""
    for factor in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93):
        values = (values ^ (values >> np.uint64(32))) * np.uint64(factor)
    return values ^ (values >> np.uint64(32))


OF_ELEMENT = _drawn("composition")
_SCALES = [0.5 + _drawn(f"weight {w}") / 2.0**64 for w in range(WEIGHTS)]
PAIR_WEIGHTS = [(np.outer(scale, scale) / 4).ravel().astype(np.float32) for scale in _SCALES]  # by pair of elements
