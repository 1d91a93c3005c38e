"""The run of all checks over all sources: measurements in; findings, a quarantine and a summary of each source out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from ase.data import chemical_symbols

from gnnscale.audit import duplicates, measure, robust
from gnnscale.audit.check_results import (
    CHECK_TITLES,
    SEVERITIES,
    Audit,
    Coverage,
    Flagged,
    Histogram,
    Quarantine,
    Report,
    SourceSummary,
    collect_quarantine,
)
from gnnscale.audit.checks import copies_and_splits, label_agreement, label_units, structures
from gnnscale.audit.measure import MeasuredSource
from gnnscale.contract.settings import AuditSettings
from gnnscale.data.storage import splits
from gnnscale.data.storage.packed import HAS_STRESS

CHECKS_OF_ONE_SOURCE = (
    structures.check_finite,
    structures.check_labels,
    structures.check_energy_outliers,
    structures.check_force_outliers,
    structures.check_overlap,
    structures.check_isolated,
    structures.check_net_force,
    structures.check_periodicity,
    label_units.check_lengths,
    label_units.check_energy_unit,
    label_agreement.check_agreement,
    copies_and_splits.check_groups,
    copies_and_splits.check_split_shares,
    copies_and_splits.check_reference_energies,
)
CHECKS_OF_ALL_SOURCES = (label_units.check_units_between_sources, copies_and_splits.check_unseen_elements)
CHECKS_OF_TWINS = (
    copies_and_splits.check_copies,
    copies_and_splits.check_contradictions,
    copies_and_splits.check_leaks,
)
MAX_DRAWN_CONTACT = 1.5  # over the sum of covalent radii; longer contacts are drawn there


def run_checks(sources: Sequence[MeasuredSource], settings: AuditSettings) -> tuple[Audit, Quarantine]:
    reports = list(make_all_checks(sources, settings))
    flagged, coverage = sort_reports(reports)
    left_out = collect_quarantine(flagged)
    leaks = duplicates.count_duplicates({s.name: s.shards for s in sources}, [s.measured.described for s in sources])
    audit = Audit(
        sources={source.name: summarise_source(source) for source in sources},
        findings=tuple(f.finding for f in flagged),
        coverage=tuple(coverage),
        leakage=leaks,
        quarantined=len(left_out.structures),
    )
    return audit, left_out


def make_all_checks(sources: Sequence[MeasuredSource], settings: AuditSettings) -> Iterator[Report]:
    for source in sources:
        for check in CHECKS_OF_ONE_SOURCE:
            yield from check(source, settings)
    for check_all in CHECKS_OF_ALL_SOURCES:
        yield from check_all(sources, settings)
    table = copies_and_splits.AllStructures(sources)
    for check_twins in CHECKS_OF_TWINS:
        yield from check_twins(table, settings)


def sort_reports(reports: Sequence[Report]) -> tuple[list[Flagged], list[Coverage]]:
    """Sort findings and coverage by check; findings then by severity."""
    order = list(CHECK_TITLES)
    flagged = [report for report in reports if isinstance(report, Flagged)]
    flagged.sort(
        key=lambda f: (
            order.index(f.finding.check),
            SEVERITIES.index(f.finding.severity),
            f.finding.source,
            f.finding.sentence,
        )
    )
    coverage = [report for report in reports if isinstance(report, Coverage)]
    coverage.sort(key=lambda each: (order.index(each.check), each.source))
    return flagged, coverage


def summarise_source(source: MeasuredSource) -> SourceSummary:
    shards, measured = source.shards, source.measured
    counts = np.bincount(shards.split, minlength=len(splits.NAMES))
    elements = Counter({chemical_symbols[z]: n for z, n in shards.manifest.total.elements.items()})
    labels = {
        "energy": int(np.isfinite(shards.energy).sum()),
        "forces": int((measured.defects & measure.NO_FORCES == 0).sum()),
        "stress": int((shards.flags & HAS_STRESS > 0).sum()),
    }
    return SourceSummary(
        structures=len(shards),
        atoms=int(shards.ptr[-1]),
        groups=len(np.unique(shards.group)),
        splits={name: int(count) for name, count in zip(splits.NAMES, counts)},
        labels=labels,
        periodic=int(shards.pbc.any(1).sum()),
        elements=dict(sorted(elements.items(), key=lambda e: (-e[1], e[0]))),
        sizes=make_histogram(shards.natoms, whole=True),
        energies=make_histogram(compute_energy_residuals(source)),
        forces=make_histogram(np.log10(np.maximum(measured.force, 1e-4))),
        contacts=make_histogram(np.minimum(measured.contact, MAX_DRAWN_CONTACT)),
    )


def compute_energy_residuals(source: MeasuredSource) -> np.ndarray:
    """Return (S,) the energy in eV/atom less the mean of its elements; NaN where unknown."""
    values = np.where(np.isfinite(source.shards.energy), source.per_atom, np.nan)
    known = np.isfinite(values)
    middle = robust.compute_group_medians(values[known], source.formula[known], len(source.formulas))
    present = np.flatnonzero(np.isfinite(middle))
    if not len(present):
        return values
    counts = np.bincount(source.formula[known], minlength=len(source.formulas))[present].astype(np.float64)
    taken = source.formulas.astype(np.float64) @ robust.fit_least_absolute(
        source.formulas[present].astype(np.float64), middle[present], counts
    )
    return values - taken[source.formula]


def make_histogram(values: np.ndarray, whole: bool = False, bins: int = 32) -> Histogram | None:
    """Count the finite values in bins, or return None if there are none.

    The ends leave out 1 value in 1000 at either side; values beyond are counted in the first and the last bin.
    """
    values = np.asarray(values, np.float64)[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [0.001, 0.999])
    if whole:
        low, high = (
            values.min() - 0.5,
            max(values.max(), values.min() + 7) + 0.5,
        )  # a single size is drawn as a bar and not as a block
        step = np.ceil((high - low) / bins)
        bins = int(np.ceil((high - low) / step))
        high = low + bins * step
    elif high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(np.clip(values, low, high), bins, (low, high))
    return Histogram(edges=tuple(float(f"{e:.6g}") for e in edges), counts=tuple(int(c) for c in counts))
