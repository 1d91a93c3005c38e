"""Checks over all structures together: copies, leaks between splits, groups, shares of splits, elements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from gnnscale.audit import duplicates
from gnnscale.audit.check_results import (
    Finding,
    Flagged,
    Report,
    Severity,
    cover,
    describe_all_as,
    flag_source,
    flag_structures,
)
from gnnscale.audit.checks.near_pairs import (
    MIN_STRAIN,
    compare_atoms,
    compare_cells,
    have_same_atoms,
    largest_norms,
)
from gnnscale.audit.measure import BAD_GEOMETRY, MeasuredSource
from gnnscale.contract.settings import AuditSettings
from gnnscale.data.storage import reference_energies, splits
from gnnscale.data.storage.packed import Packed

MIN_CONTRADICTION_EV_PER_ANGSTROM = 0.05  # of a force; k-points and convergence change less
# Two calculations never agree in all digits; a copy of one may have been rounded to float32 positions.
MAX_STEP_OF_COPY_ANGSTROM, MAX_ENERGY_OF_COPY, MAX_FORCE_OF_COPY = 1e-4, 1e-11, 1e-4  # the latter two relative
MIN_TELLING_FORCE = 1e-3  # eV/Angstrom; forces that vanish by symmetry are those of many structures
PAIRS_PER_PIECE = 8192  # compared atom by atom together
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
        self.natoms = np.concatenate([s.shards.natoms for s in sources])
        self.force = np.concatenate([s.measured.force for s in sources])
        self.periodic = np.concatenate([s.shards.pbc.any(1) for s in sources])
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
        self.step, self.force_gap = self._superpose()
        self.copied = self._find_copies()

    def _superpose(self) -> tuple[np.ndarray, np.ndarray]:
        """Return for each pair the largest displacement of an atom, and the largest difference of forces if there is none.

        The displacement is infinite for pairs that are not equal, and where atoms or cells differ in order or number.
        """
        step, gap = np.full(len(self.a), np.inf), np.full(len(self.a), np.nan)
        pairs = np.flatnonzero(self.equal & (self.natoms[self.a] == self.natoms[self.b]))
        places = self.source[self.a[pairs]] * len(self.sources) + self.source[self.b[pairs]]
        for place in np.unique(places):
            mine = pairs[places == place]
            for some in np.array_split(mine, len(mine) // PAIRS_PER_PIECE + 1):
                one, two = (self._select(which[some]) for which in (self.a, self.b))
                step[some], gap[some] = superpose_pairs(one, two)
        return step, gap

    def _select(self, which: np.ndarray) -> Packed:
        """Read structures that are all of one source."""
        index = self.source[which[0]] if len(which) else 0
        return self.sources[index].shards.select(which - self.first[index])

    def _find_copies(self) -> np.ndarray:
        """Find pairs that are one calculation, (pairs,) bool: equal in all labels, so that they are not by symmetry alone."""
        a, b = self.a, self.b
        coincide = (self.step < MAX_STEP_OF_COPY_ANGSTROM) & ~(self.force_gap > MIN_CONTRADICTION_EV_PER_ANGSTROM)
        same_energy = np.abs(self.energy[a] - self.energy[b]) <= MAX_ENERGY_OF_COPY * np.abs(self.energy[a])
        same_forces = np.abs(self.force[a] - self.force[b]) <= MAX_FORCE_OF_COPY * self.force[a]
        tells = same_forces & (self.force[a] > MIN_TELLING_FORCE)
        unlabelled = np.isnan(self.energy[a]) & np.isnan(self.energy[b])
        return np.asarray(self.equal & ((same_energy & (tells | coincide)) | (unlabelled & coincide)))

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


def superpose_pairs(one: Packed, two: Packed) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest displacement of an atom of each pair, and the largest difference of forces, NaN if atoms moved."""
    deform, strain, turn = compare_cells(one, two)
    moved, forces = compare_atoms(one, two, deform)
    comparable = have_same_atoms(one, two) & (np.maximum(np.abs(strain).max((1, 2), initial=0), turn) < MIN_STRAIN)
    step = np.where(comparable, largest_norms(moved, one.ptr), np.inf)
    gap = largest_norms(forces - one.forces, one.ptr)
    return step, np.where(step < MAX_STEP_OF_COPY_ANGSTROM, gap, np.nan)


def check_copies(table: AllStructures, settings: AuditSettings) -> Iterator[Report]:
    for source in table.sources:
        yield cover("copies", source, source.measured.defects & BAD_GEOMETRY == 0, "no geometry is sound")
    across = table.equal & (table.source[table.a] != table.source[table.b])
    yield from _flag_copies_within_sources(table)
    yield from _note_copies_between_sources(table, table.a[across], table.b[across])


def _flag_copies_within_sources(table: AllStructures) -> Iterator[Report]:
    """Find copies with the labels of the original, which are to be left out, and equal structures with their own."""
    within = table.equal & (table.source[table.a] == table.source[table.b])
    a, b, copied = table.a[within], table.b[within], table.copied[within]
    apart = np.abs(table.energy[a] - table.energy[b])
    twin = dict(zip(b[::-1].tolist(), a[::-1].tolist()))
    twin |= dict(zip(b[copied][::-1].tolist(), a[copied][::-1].tolist()))
    copies = np.unique(b[copied])
    alike = np.setdiff1d(b[apart <= duplicates.MIN_CONTRADICTION_EV_PER_ATOM], copies)

    def describe(k: int) -> str:
        return f"equal to {table.origin(twin[k])}"

    for index in range(len(table.sources)):
        same, other = (which[table.source[which] == index] for which in (copies, alike))
        if len(same):
            sentence = (
                "{} are copies of another structure of this source, up to rotation, translation and order of the atoms, "
                "and have the same labels."
            )
            no_order, reason = np.zeros(len(same)), "copy of another structure"
            yield _flag_in_source(table, "copies", "warning", index, same, describe, sentence, no_order, reason)
        if len(other):
            sentence = (
                "{} are equal to another structure of this source up to symmetry, as far as distances within "
                f"{duplicates.CUTOFF_ANGSTROM:g} Å tell, and have labels of their own. They stay, but add little to it."
            )
            yield _flag_in_source(table, "copies", "note", index, other, describe, sentence, np.zeros(len(other)))


def check_contradictions(table: AllStructures, settings: AuditSettings) -> Iterator[Report]:
    """Find equal structures of one source whose energies differ, or whose forces do where the atoms coincide."""
    within = table.equal & (table.source[table.a] == table.source[table.b])
    a, b = table.a[within], table.b[within]
    by_energy = np.nan_to_num(np.abs(table.energy[a] - table.energy[b]))  # (pairs,) eV/atom
    by_force = np.nan_to_num(table.force_gap[within])  # (pairs,) eV/Angstrom
    differ = (by_energy > duplicates.MIN_CONTRADICTION_EV_PER_ATOM) | (by_force > MIN_CONTRADICTION_EV_PER_ANGSTROM)
    order = np.flatnonzero(differ)[np.argsort(by_energy[differ], kind="stable")]
    gaps = {int(b[k]): (int(a[k]), float(by_energy[k]), float(by_force[k])) for k in order}
    for index, source in enumerate(table.sources):
        yield cover("contradictions", source, source.measured.defects & BAD_GEOMETRY == 0, "no geometry is sound")
        which = np.array(sorted(k for k in gaps if table.source[k] == index), np.int64)
        if len(which):
            yield _flag_contradictions(table, index, which, gaps)


def _flag_contradictions(
    table: AllStructures, index: int, which: np.ndarray, gaps: dict[int, tuple[int, float, float]]
) -> Flagged:
    def describe(k: int) -> str:
        twin, energy, force = gaps[k]
        forces = f" and the forces by up to {force:.3g} eV/Å" if force > MIN_CONTRADICTION_EV_PER_ANGSTROM else ""
        return f"equal to {table.origin(twin)}, but the energies differ by {1e3 * energy:.3g} meV/atom{forces}"

    largest = max(gaps[k][1] for k in which.tolist())
    sentence = (
        f"{{}} are equal to another structure of this source, but the energies differ by up to {1e3 * largest:.3g} meV/atom, "
        "or the forces do: a charge, spin or setting may not be recorded, or a label is wrong."
    )
    badness = np.array([gaps[k][1] + gaps[k][2] for k in which.tolist()])
    return _flag_in_source(table, "contradictions", "warning", index, which, describe, sentence, badness)


def _note_copies_between_sources(table: AllStructures, a: np.ndarray, b: np.ndarray) -> Iterator[Report]:
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


def check_leaks(table: AllStructures, settings: AuditSettings) -> Iterator[Report]:
    """Find held-out structures with a twin in the training split of any source.

    They surely leak if they are copies, or molecules; crystals that are equal by symmetry may be other calculations.
    """
    for source in table.sources:
        held_out = (source.shards.split != TRAIN) if (table.split == TRAIN).any() else np.zeros(0, bool)
        reason = "no structure is held out" if (table.split == TRAIN).any() else "no structure is trained on"
        yield cover("leaks", source, held_out, reason, "held-out structures")
    held = np.concatenate([table.a, table.b])
    twin = np.concatenate([table.b, table.a])
    same = table.copied | (table.step < MAX_STEP_OF_COPY_ANGSTROM) | (table.equal & ~table.periodic[table.a])
    equal = np.concatenate([same, same])
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
            "{} are held out, but a training split has nearly the same geometry, or the same up to symmetry: displacements "
            "of some thousandths of an Å make a larger difference.",
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


def check_groups(source: MeasuredSource, settings: AuditSettings) -> Iterator[Report]:
    if source.card is not None and source.card.test_of is None and source.card.split.by == "frame":
        yield cover("groups", source, 0, "frames were split one by one")
        sentence = (
            "Frames were split one by one: held-out errors are too optimistic, as frames of one trajectory are alike."
        )
        yield flag_source("groups", "warning", source, sentence)
        return
    group, split = source.shards.group, source.shards.split
    yield cover("groups", source, len(np.unique(group)), "", "groups")
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


def check_split_shares(source: MeasuredSource, settings: AuditSettings) -> Iterator[Report]:
    """Check the shares of the splits; an external test is all held out, and its source may hold out nothing itself."""
    total, card = len(source.shards), source.card
    yield cover("splits", source, total, "")
    if card is not None and card.test_of is not None:
        return
    count = np.bincount(source.shards.split, minlength=len(splits.NAMES))
    counts = ", ".join(f"{name} {n:,}" for name, n in zip(splits.NAMES, count))
    min_test = 0 if card is not None and card.split.test == 0 else MIN_TEST_SHARE * total
    if count[TRAIN] < MIN_TRAIN_SHARE * total or count[TEST] < min_test:
        yield flag_source("splits", "warning", source, f"The shares of the splits are unusual: {counts} structures.")
    elif not count[VALIDATION]:
        yield flag_source("splits", "note", source, "No structure is in the validation split.")


def check_unseen_elements(sources: Sequence[MeasuredSource], settings: AuditSettings) -> Iterator[Report]:
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


def check_reference_energies(source: MeasuredSource, settings: AuditSettings) -> Iterator[Report]:
    if source.card is not None and source.card.test_of is not None:
        return  # its references are those of its source
    energies, known = source.shards.manifest.total.energies, list_known_references(source)
    yield cover("references", source, energies.structures, "no training structure has an energy", "training structures")
    sets = reference_energies.find_undetermined(energies, known) if energies.structures else []
    if not sets:
        return
    _, rank = reference_energies.fit_references(energies, known)
    named = ["–".join(chemical_symbols[z] for z in one) for one in sets]
    together = [name for name, one in zip(named, sets) if len(one) > 1]
    absent = [name for name, one in zip(named, sets) if len(one) == 1]
    sentence = (
        f"{rank} of {len(energies.elements)} reference energies are known, or the training split determines them."
    )
    if together:
        sentence += (
            f" They do not separate those of {'; '.join(together)}: an excess of one compensates for another, and only "
            "their sum over a structure has a meaning."
        )
    if absent:
        sentence += f" They do not determine {', '.join(absent)}, which no training structure with an energy contains."
    yield flag_source("references", "note", source, sentence)


def list_known_references(source: MeasuredSource) -> dict[int, float]:
    """Return the references that were not fitted: atomic number -> eV."""
    if source.card is None:
        return {}
    origins = source.card.reference_origins
    return {
        atomic_numbers[symbol]: source.card.references[symbol]
        for symbol, origin in origins.items()
        if not origin.startswith("fitted")
    }
