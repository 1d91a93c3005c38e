"""Checks over all structures together: copies, leaks between splits, groups, shares of splits, elements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np
from ase.data import chemical_symbols

from gnnscale.audit import duplicates
from gnnscale.audit.check_results import Finding, Flagged, Severity, describe_all_as, flag_source, flag_structures
from gnnscale.audit.measure import MeasuredSource
from gnnscale.contract.settings import AuditSettings
from gnnscale.data.storage import reference_energies, splits

TRAIN, VALIDATION, TEST = (splits.NAMES.index(name) for name in ("train", "validation", "test"))
MIN_TEST_SHARE, MIN_TRAIN_SHARE = 0.02, 0.5  # shares of the structures


class AllStructures:
    """All structures of all sources in one sequence, with the pairs of them that are near or equal."""

    def __init__(self, sources: Sequence[MeasuredSource]):
        self.sources = sources
        self.first = np.concatenate([[0], np.cumsum([len(s.shards) for s in sources])]).astype(np.int64)
        self.source = np.repeat(np.arange(len(sources)), np.diff(self.first))
        self.split = np.concatenate([s.shards.split for s in sources])
        self.energy = np.concatenate([s.per_atom for s in sources])
        self.rank = self._ranked()
        parts = list(
            duplicates.find_near_pairs(duplicates.concatenate_descriptors([s.measured.described for s in sources]))
        )
        empty = np.empty(0, np.int64)
        self.a = np.concatenate([empty, *(p[0] for p in parts)])
        self.b = np.concatenate([empty, *(p[1] for p in parts)])
        self.equal = np.concatenate([np.empty(0, bool), *(p[2] for p in parts)])
        swap = self.rank[self.a] > self.rank[self.b]  # in each pair, a is the structure to keep
        a, b = np.where(swap, self.b, self.a), np.where(swap, self.a, self.b)
        order = np.lexsort((self.rank[a], self.rank[b]))
        self.a, self.b, self.equal = a[order], b[order], self.equal[order]

    def _ranked(self) -> np.ndarray:
        """Rank all structures; of several copies the one of lowest rank stays.

        Held-out structures come first, so that test sets stay as published; then the order is that of the raw files.
        """
        parts = []
        for source in self.sources:
            named = np.argsort(np.argsort(np.array(source.shards.units)))[source.shards.unit]
            parts.append((source.shards.number, named))
        number, unit = (np.concatenate(columns) for columns in zip(*parts))
        priority = np.array([2, 1, 0])[self.split]  # of train, validation, test
        rank = np.empty(len(self.source), np.int64)
        rank[np.lexsort((number, unit, self.source, priority))] = np.arange(len(rank))
        return rank

    def origin(self, k: int) -> str:
        source = self.sources[self.source[k]]
        return f"{source.name}: {source.origin(int(k - self.first[self.source[k]]))}"


def check_copies(table: AllStructures, settings: AuditSettings) -> Iterator[Flagged]:
    a, b = table.a[table.equal], table.b[table.equal]
    within = table.source[a] == table.source[b]
    yield from _flag_copies_within_sources(table, a[within], b[within])
    yield from _note_copies_between_sources(table, a[~within], b[~within])


def _flag_copies_within_sources(table: AllStructures, a: np.ndarray, b: np.ndarray) -> Iterator[Flagged]:
    """Find copies with the energy of the original, which are to be left out, and copies that contradict it."""
    apart = np.abs(table.energy[a] - table.energy[b])
    differ = apart > duplicates.MIN_CONTRADICTION_EV_PER_ATOM
    twin = dict(zip(b[::-1].tolist(), a[::-1].tolist()))
    gap = dict(zip(b[differ].tolist(), apart[differ].tolist()))

    def describe_copy(k: int) -> str:
        return f"identical to {table.origin(twin[k])}"

    def describe_contradiction(k: int) -> str:
        return f"{describe_copy(k)}, but the energies differ by {1e3 * gap[k]:.3g} meV/atom"

    for index in range(len(table.sources)):
        same, other = (np.unique(b[which & (table.source[b] == index)]) for which in (~differ, differ))
        if len(same):
            sentence = "{} are identical to another structure of this source, up to rotation, translation and order of the atoms."
            no_order, reason = np.zeros(len(same)), "copy of another structure"
            yield _flag_in_source(table, "copies", "warning", index, same, describe_copy, sentence, no_order, reason)
        if len(other):
            sentence = (
                "{} are identical to another structure of this source, but the energies differ by more than "
                f"{1e3 * duplicates.MIN_CONTRADICTION_EV_PER_ATOM:g} meV/atom: a charge, spin or setting may not be "
                "recorded, or a label is wrong."
            )
            gaps = np.array([gap[k] for k in other.tolist()])
            yield _flag_in_source(table, "copies", "warning", index, other, describe_contradiction, sentence, gaps)


def _note_copies_between_sources(table: AllStructures, a: np.ndarray, b: np.ndarray) -> Iterator[Flagged]:
    lower, upper = np.minimum(table.source[a], table.source[b]), np.maximum(table.source[a], table.source[b])
    for one, two in combinations(range(len(table.sources)), 2):
        hit = (lower == one) & (upper == two)
        if hit.any():
            count = len(np.unique(np.where(table.source[a[hit]] == one, a[hit], b[hit])))
            source, other = table.sources[one], table.sources[two]
            finding = Finding(
                check="copies",
                severity="note",
                source=source.name,
                count=count,
                examined=len(source.shards),
                sentence=f"{count:,} structures are also in {other.name}, which has its own labels.",
            )
            yield Flagged(finding)


def check_leaks(table: AllStructures, settings: AuditSettings) -> Iterator[Flagged]:
    """Find held-out structures with a twin in the training split of any source."""
    held = np.concatenate([table.a, table.b])
    twin = np.concatenate([table.b, table.a])
    equal = np.concatenate([table.equal, table.equal])
    leaked = (table.split[held] != TRAIN) & (table.split[twin] == TRAIN)
    held, twin, equal = held[leaked], twin[leaked], equal[leaked]
    order = np.lexsort((table.rank[twin], equal))[
        ::-1
    ]  # the last entry of a structure stays: an equal twin of low rank
    held, twin, equal = held[order], twin[order], equal[order]
    exact = np.unique(held[equal])
    where = dict(zip(held[~equal].tolist(), twin[~equal].tolist())) | dict(
        zip(held[equal].tolist(), twin[equal].tolist())
    )
    kinds: tuple[tuple[Severity, np.ndarray, str], ...] = (
        (
            "error",
            exact,
            "{} are held out for validation or test, but the same geometry is in a training split.",
        ),
        (
            "warning",
            np.setdiff1d(held, exact),
            "{} are held out, but a training split has nearly the same geometry: displacements of some "
            "thousandths of an Å make a larger difference.",
        ),
    )
    for severity, which, words in kinds:
        for index in range(len(table.sources)):
            mine = which[table.source[which] == index]
            if len(mine):
                yield _flag_in_source(
                    table,
                    "leaks",
                    severity,
                    index,
                    mine,
                    lambda k: f"in {splits.NAMES[table.split[k]]}; its twin in training: {table.origin(where[k])}",
                    words,
                    np.zeros(len(mine)),
                )


def _flag_in_source(
    table: AllStructures,
    check: str,
    severity: Severity,
    index: int,
    which: np.ndarray,
    describe: Callable[[int], str],
    sentence: str,
    badness: np.ndarray,
    reason: str = "",
) -> Flagged:
    """Make a finding about structures by their index in `table`; with a reason, all of them are to be left out."""
    source, start = table.sources[index], int(table.first[index])
    wrong = which - start if reason else None
    return flag_structures(
        check, severity, source, which - start, badness, lambda k: describe(k + start), sentence, wrong, reason
    )


def check_groups(source: MeasuredSource, settings: AuditSettings) -> Iterator[Flagged]:
    group, split = source.shards.group, source.shards.split
    pairs = np.unique(np.stack([group, split.astype(np.int64)], 1), axis=0)
    name, count = np.unique(pairs[:, 0], return_counts=True)
    astride = name[count > 1]
    if len(astride):
        which = np.flatnonzero(np.isin(group, astride))
        sentence = (
            f"{len(astride):,} groups (molecules, trajectories, materials) with {{}} lie in more than one split: "
            "held-out errors are too optimistic."
        )
        yield flag_structures(
            "groups", "warning", source, which, np.zeros(len(which)), lambda k: f"in {splits.NAMES[split[k]]}", sentence
        )


def check_split_shares(source: MeasuredSource, settings: AuditSettings) -> Iterator[Flagged]:
    total = len(source.shards)
    count = np.bincount(source.shards.split, minlength=len(splits.NAMES))
    counts = ", ".join(f"{name} {n:,}" for name, n in zip(splits.NAMES, count))
    if count[TRAIN] < MIN_TRAIN_SHARE * total or count[TEST] < MIN_TEST_SHARE * total:
        yield flag_source("splits", "warning", source, f"The shares of the splits are unusual: {counts} structures.")
    elif not count[VALIDATION]:
        yield flag_source("splits", "note", source, "No structure is in the validation split.")


def check_unseen_elements(sources: Sequence[MeasuredSource], settings: AuditSettings) -> Iterator[Flagged]:
    """Find elements of held-out structures that no training structure has."""
    trained: set[int] = set()
    for source in sources:
        trained |= find_elements(source, source.shards.split == TRAIN)
    for source in sources:
        alone = sorted(find_elements(source, source.shards.split != TRAIN) - trained)
        if alone:
            columns = np.searchsorted(source.elements, alone)
            has = np.asarray((source.formulas[:, columns] > 0).any(1))
            which = np.flatnonzero(has[source.formula] & (source.shards.split != TRAIN))
            named = ", ".join(chemical_symbols[z] for z in alone)
            yield flag_structures(
                "splits",
                "warning",
                source,
                which,
                np.zeros(len(which)),
                describe_all_as(named),
                f"{{}} are held out and have elements that no training structure has: {named}.",
            )


def find_elements(source: MeasuredSource, which: np.ndarray) -> set[int]:
    rows = source.formulas[np.unique(source.formula[which])]
    return set(source.elements[(rows > 0).any(0)].tolist())


def check_reference_energies(source: MeasuredSource, settings: AuditSettings) -> Iterator[Flagged]:
    energies = source.shards.manifest.total.energies
    sets = reference_energies.undetermined(energies) if energies.structures else []
    if not sets:
        return
    _, rank = reference_energies.fit(energies)
    named = ["–".join(chemical_symbols[z] for z in one) for one in sets]
    together = [name for name, one in zip(named, sets) if len(one) > 1]
    absent = [name for name, one in zip(named, sets) if len(one) == 1]
    sentence = f"The energies of the training split determine {rank} of {len(energies.elements)} reference energies."
    if together:
        sentence += (
            f" They do not separate those of {'; '.join(together)}: an excess of one compensates for another, and only "
            "their sum over a structure has a meaning."
        )
    if absent:
        sentence += f" They do not determine {', '.join(absent)}, which no training structure with an energy contains."
    yield flag_source("references", "note", source, sentence)
