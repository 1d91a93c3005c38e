"""Checks over all structures together: copies, what is held out and trained on, groups, splits, elements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from ase.data import chemical_symbols

from gnnscale.audit import duplicates
from gnnscale.audit.check_results import Finding, Flagged, Severity, flag_source, flag_structures
from gnnscale.audit.measure import MeasuredSource
from gnnscale.contract.settings import AuditSettings
from gnnscale.data.storage import reference_energies, splits

TRAIN, VALIDATION, TEST = (splits.NAMES.index(name) for name in ("train", "validation", "test"))
MIN_TEST_SHARE, MIN_TRAIN_SHARE = 0.02, 0.5  # shares of the structures


class AllStructures:
    """All structures of all sources in one row, and what any pair of them has in common."""

    def __init__(self, sources: Sequence[MeasuredSource]):
        self.sources = sources
        self.first = np.concatenate([[0], np.cumsum([len(s.shards) for s in sources])]).astype(np.int64)
        self.source = np.repeat(np.arange(len(sources)), np.diff(self.first))
        self.split = np.concatenate([s.shards.split for s in sources])
        self.energy = np.concatenate([s.per_atom for s in sources])
        self.rank = self._ranked()
        parts = list(
            duplicates.find_near_pairs(duplicates.concatenate_descriptors([s.seen.described for s in sources]))
        )
        empty = np.empty(0, np.int64)
        self.a = np.concatenate([empty, *(p[0] for p in parts)])
        self.b = np.concatenate([empty, *(p[1] for p in parts)])
        self.equal = np.concatenate([np.empty(0, bool), *(p[2] for p in parts)])
        swap = self.rank[self.a] > self.rank[self.b]  # of each pair, a is the one to keep
        a, b = np.where(swap, self.b, self.a), np.where(swap, self.a, self.b)
        order = np.lexsort((self.rank[a], self.rank[b]))
        self.a, self.b, self.equal = a[order], b[order], self.equal[order]

    def _ranked(self) -> np.ndarray:
        """Of copies the lowest stays: the held-out one, so that what is measured on stays as published; then by origin."""
        parts = []
        for source in self.sources:
            named = np.argsort(np.argsort(np.array(source.shards.units)))[source.shards.unit]
            parts.append((source.shards.number, named))
        number, unit = (np.concatenate(columns) for columns in zip(*parts))
        kept = np.array([2, 1, 0])[self.split]  # of train, validation, test
        rank = np.empty(len(self.source), np.int64)
        rank[np.lexsort((number, unit, self.source, kept))] = np.arange(len(rank))
        return rank

    def place(self, k: int) -> str:
        source = self.sources[self.source[k]]
        return f"{source.name}: {source.place(int(k - self.first[self.source[k]]))}"


def check_copies(table: AllStructures, asked: AuditSettings) -> Iterator[Flagged]:
    a, b = table.a[table.equal], table.b[table.equal]
    within = table.source[a] == table.source[b]
    apart = np.abs(table.energy[a] - table.energy[b])
    differ = within & (apart > duplicates.MIN_CONTRADICTION_EV_PER_ATOM)
    twin = dict(zip(b[within][::-1].tolist(), a[within][::-1].tolist()))
    gap = dict(zip(b[differ].tolist(), apart[differ].tolist()))
    for index in range(len(table.sources)):
        same, other = (np.unique(b[which & (table.source[b] == index)]) for which in (within & ~differ, differ))
        if len(same):
            sentence = "{} are the same as another of this source, turned, moved or permuted perhaps."
            yield _flag_in_source(
                table,
                "copies",
                "warning",
                index,
                same,
                lambda k: f"the same as {table.place(twin[k])}",
                sentence,
                np.zeros(len(same)),
                "copy of another structure",
            )
        if len(other):
            sentence = (
                f"{{}} are the same as another, but with an energy more than {1e3 * duplicates.MIN_CONTRADICTION_EV_PER_ATOM:g} "
                "meV/atom apart: a charge, a spin or a setting that is not told, or an error."
            )
            yield _flag_in_source(
                table,
                "copies",
                "warning",
                index,
                other,
                lambda k: f"the same as {table.place(twin[k])}, but {1e3 * gap[k]:.3g} meV/atom apart",
                sentence,
                np.array([gap[k] for k in other.tolist()]),
            )
    for one in range(len(table.sources)):
        for two in range(one + 1, len(table.sources)):
            hit = np.minimum(table.source[a], table.source[b]) == one
            hit &= np.maximum(table.source[a], table.source[b]) == two
            if hit.any():
                mine = np.unique(np.where(table.source[a[hit]] == one, a[hit], b[hit]))
                sentence = f"{len(mine):,} structures are also in {table.sources[two].name}, with labels of its own."
                yield Flagged(
                    Finding(
                        check="copies",
                        severity="note",
                        source=table.sources[one].name,
                        count=len(mine),
                        of=len(table.sources[one].shards),
                        sentence=sentence,
                    )
                )


def check_leaks(table: AllStructures, asked: AuditSettings) -> Iterator[Flagged]:
    """Held-out structures with a twin in the training split of any source."""
    held = np.concatenate([table.a, table.b])
    twin = np.concatenate([table.b, table.a])
    equal = np.concatenate([table.equal, table.equal])
    leaked = (table.split[held] != TRAIN) & (table.split[twin] == TRAIN)
    held, twin, equal = held[leaked], twin[leaked], equal[leaked]
    order = np.lexsort((table.rank[twin], equal))[::-1]  # what is told last stands: an equal one, of lowest rank
    held, twin, equal = held[order], twin[order], equal[order]
    exact = np.unique(held[equal])
    where = dict(zip(held[~equal].tolist(), twin[~equal].tolist())) | dict(
        zip(held[equal].tolist(), twin[equal].tolist())
    )
    for severity, which, words in (
        (
            "error",
            exact,
            "{} held out for validation or test are trained on: the same geometry is in a training split.",
        ),
        (
            "warning",
            np.setdiff1d(held, exact),
            "{} held out are nearly the same as one that is trained on (by less than a "
            "rattle of some thousandths of an Å).",
        ),
    ):
        for index in range(len(table.sources)):
            mine = which[table.source[which] == index]
            if len(mine):
                yield _flag_in_source(
                    table,
                    "leaks",
                    severity,
                    index,
                    mine,
                    lambda k: f"in {splits.NAMES[table.split[k]]}; in training: {table.place(where[k])}",
                    words,
                    np.zeros(len(mine)),
                )


def _flag_in_source(
    table: AllStructures,
    check: str,
    severity: Severity,
    index: int,
    which: np.ndarray,
    said: Callable[[int], str],
    sentence: str,
    badness: np.ndarray,
    reason: str = "",
) -> Flagged:
    """As of_structures, but by numbers in the table; with a reason, all of them are surely wrong."""
    source, start = table.sources[index], int(table.first[index])
    wrong = which - start if reason else None
    return flag_structures(
        check, severity, source, which - start, badness, lambda k: said(k + start), sentence, wrong, reason
    )


def check_groups(source: MeasuredSource, asked: AuditSettings) -> Iterator[Flagged]:
    group, split = source.shards.group, source.shards.split
    pairs = np.unique(np.stack([group, split.astype(np.int64)], 1), axis=0)
    name, count = np.unique(pairs[:, 0], return_counts=True)
    astride = name[count > 1]
    if len(astride):
        which = np.flatnonzero(np.isin(group, astride))
        sentence = (
            f"{len(astride):,} groups (molecules, trajectories, materials), {{}} in all, lie in more than one split: "
            "held-out errors will look better than they are."
        )
        yield flag_structures(
            "groups", "warning", source, which, np.zeros(len(which)), lambda k: f"in {splits.NAMES[split[k]]}", sentence
        )


def check_split_shares(source: MeasuredSource, asked: AuditSettings) -> Iterator[Flagged]:
    total = len(source.shards)
    count = np.bincount(source.shards.split, minlength=len(splits.NAMES))
    told = ", ".join(f"{name} {n:,}" for name, n in zip(splits.NAMES, count))
    if count[TRAIN] < MIN_TRAIN_SHARE * total or count[TEST] < MIN_TEST_SHARE * total:
        yield flag_source("splits", "warning", source, f"An unusual split: {told} structures.")
    elif not count[VALIDATION]:
        yield flag_source("splits", "note", source, "No structure is in the validation split.")


def check_unseen_elements(sources: Sequence[MeasuredSource], asked: AuditSettings) -> Iterator[Flagged]:
    """Elements that are held out and trained on nowhere."""
    trained: set[int] = set()
    for source in sources:
        trained |= find_elements(source, source.shards.split == TRAIN)
    for source in sources:
        alone = sorted(find_elements(source, source.shards.split != TRAIN) - trained)
        if alone:
            columns = np.searchsorted(source.elements, alone)
            has = (source.formulas[:, columns] > 0).any(1)
            which = np.flatnonzero(has[source.formula] & (source.shards.split != TRAIN))
            named = ", ".join(chemical_symbols[z] for z in alone)
            yield flag_structures(
                "splits",
                "warning",
                source,
                which,
                np.zeros(len(which)),
                lambda k, named=named: named,
                f"{{}} held out have elements that no training structure has: {named}.",
            )


def find_elements(source: MeasuredSource, which: np.ndarray) -> set[int]:
    rows = source.formulas[np.unique(source.formula[which])]
    return set(source.elements[(rows > 0).any(0)].tolist())


def check_reference_energies(source: MeasuredSource, asked: AuditSettings) -> Iterator[Flagged]:
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
            f" They cannot tell apart those of {'; '.join(together)}: what one has too much another has too "
            "little, and only their sum over a structure means something."
        )
    if absent:
        sentence += f" They say nothing of {', '.join(absent)}, which no training structure with an energy has."
    yield flag_source("references", "note", source, sentence)
