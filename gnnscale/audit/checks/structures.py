"""Checks of one structure at a time: numbers, labels, outliers, distances, net force, cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gnnscale.audit import measure, robust
from gnnscale.audit.check_results import Flagged, flag_source, flag_structures
from gnnscale.audit.measure import MeasuredSource
from gnnscale.contract.settings import AuditSettings
from gnnscale.data.storage.packed import HAS_CELL, HAS_STRESS

ARTICLES = {"energy": "an ", "forces": "", "stress": "a "}
MIN_STRUCTURES_OF_COMPOSITION = 8  # structures of a composition, from which on they are compared with each other
MIN_VALUES_FOR_SPREAD = 20  # values, below which nothing is said of how they scatter
MIN_ENERGY_SPREAD, MIN_FORCE_SPREAD = 1e-3, 1e-2  # eV/atom, eV/Angstrom: deviations below it are nobody's mistake
CLOSE_CONTACT, OVERLAPPING_CONTACT = (
    0.5,
    0.35,
)  # of the sum of covalent radii. Least in MAD's random structures 0.44, elsewhere 0.57
MAX_NET_FORCE = (
    5e-3  # eV/Angstrom per atom. Published sets are below 1e-4, SPICE at 1e-3, those with a known defect above 1e-2
)
MIN_VACUUM_ANGSTROM, MAX_FILLED_GAP_ANGSTROM = 8.0, 3.0  # Angstrom without the centre of an atom
CRYSTAL_VOLUMES = (3.0, 60.0)  # Angstrom^3 per atom of a crystal


def check_finite(source: MeasuredSource, asked: AuditSettings) -> Iterator[Flagged]:
    for bit, what in (
        (measure.BAD_GEOMETRY, "positions or lattice vectors are not finite, or span no volume"),
        (measure.BAD_ENERGY, "the energy is infinite"),
        (measure.BAD_FORCES, "some components of the forces are not finite"),
        (measure.BAD_STRESS, "some components of the stress are not finite"),
    ):
        which = np.flatnonzero(source.seen.defects & bit)
        if len(which):
            sentence = f"In {{}} {what}."
            yield flag_structures(
                "finite", "error", source, which, np.ones(len(which)), lambda k, what=what: what, sentence, which, what
            )


def check_labels(source: MeasuredSource, asked: AuditSettings) -> Iterator[Flagged]:
    shards, seen = source.shards, source.seen
    periodic = shards.pbc.any(1)
    lacking = {
        "energy": np.isnan(shards.energy),
        "forces": seen.defects & measure.NO_FORCES > 0,
        "stress": (shards.flags & HAS_STRESS == 0) & periodic,
    }
    for label, without in lacking.items():
        among = int(periodic.sum()) if label == "stress" else len(shards)
        which = np.flatnonzero(without)
        if len(which) == among and among:
            kind = "periodic structure" if label == "stress" else "structure"
            yield flag_source("labels", "note", source, f"No {kind} has {ARTICLES[label]}{label}.")
        elif len(which):
            verb = "has" if len(which) == 1 else "have"
            sentence = f"{{}} of {among:,} {verb} no {label}, though others do."
            yield flag_structures(
                "labels", "warning", source, which, np.zeros(len(which)), lambda k, label=label: f"no {label}", sentence
            )
    still = np.flatnonzero((seen.unmoved == shards.natoms) & (shards.natoms > 1) & ~periodic)
    if len(still):
        sentence = "In {}, none of them periodic, every force is exactly zero, as where they were not computed."
        yield flag_structures(
            "labels", "warning", source, still, shards.natoms[still], lambda k: "all forces are 0", sentence
        )


# --------------------------------------------------------------------------------------------------------- outliers
class Deviations(NamedTuple):
    """From the middle of their kind, in robust standard deviations; NaN where nothing can be said."""

    z: np.ndarray  # (S,)
    kind: np.ndarray  # (S,) bool: compared with the same composition; else by elements
    whole: np.ndarray  # (formulas,) of the median of a composition, against what its elements have on the mean


def compute_deviations(values: np.ndarray, source: MeasuredSource) -> Deviations:
    """Within a composition that is frequent enough; else what is left when each element has taken its share."""
    known, formula, formulas = np.isfinite(values), source.formula, len(source.formulas)
    counts = np.bincount(formula[known], minlength=formulas)
    middle = robust.compute_group_medians(values[known], formula[known], formulas)
    frequent = counts >= MIN_STRUCTURES_OF_COMPOSITION
    same = known & frequent[formula]
    away = np.where(known, values - middle[formula], np.nan)
    pooled = robust.estimate_spread(
        away[same]
    )  # that of all: a relaxation's own is small, as most of its frames are its end
    own = robust.STANDARD_DEVIATIONS_PER_MAD * robust.compute_group_medians(
        np.abs(away[known]), formula[known], formulas
    )
    within = np.maximum(np.hypot(own, pooled), MIN_ENERGY_SPREAD)
    z = np.where(same & (same.sum() >= MIN_VALUES_FOR_SPREAD), away / within[formula], np.nan)
    whole, seen = np.full(formulas, np.nan), np.flatnonzero(counts)
    if len(seen) >= MIN_VALUES_FOR_SPREAD:
        rows = source.formulas[seen].astype(np.float64)
        taken = rows @ robust.fit_least_absolute(rows, middle[seen], counts[seen].astype(np.float64))
        left = middle[seen] - taken
        between = max(robust.estimate_spread(left), pooled, MIN_ENERGY_SPREAD)
        whole[seen] = left / between
        rest, base = known & ~same, np.zeros(formulas)
        base[seen] = taken
        z[rest] = (values[rest] - base[formula[rest]]) / between
    return Deviations(z, same, np.where(frequent, whole, np.nan))


def check_energy_outliers(source: MeasuredSource, asked: AuditSettings) -> Iterator[Flagged]:
    values = np.where(np.isfinite(source.shards.energy), source.per_atom, np.nan)
    found = compute_deviations(values, source)
    which = np.flatnonzero(np.abs(found.z) > asked.report_above)
    if len(which):
        wrong = np.flatnonzero(np.abs(found.z) > asked.quarantine_above)

        def said(k: int) -> str:
            among = "in its composition" if found.kind[k] else "by elements"
            return f"{values[k]:.5g} eV/atom, z = {found.z[k]:+.0f} {among}"

        sentence = (
            f"The energy of {{}} lies more than {asked.report_above:g} robust standard deviations from others of its "
            f"composition, or from what its elements have on the mean; {_count_quarantined(wrong, asked)}."
        )
        yield flag_structures(
            "energy outliers",
            "error" if len(wrong) else "warning",
            source,
            which,
            np.abs(found.z[which]),
            said,
            sentence,
            wrong,
            "energy outlier",
        )
    odd = np.flatnonzero(np.abs(found.whole) > asked.report_above)
    if len(odd):
        which = np.flatnonzero(np.isin(source.formula, odd) & np.isfinite(values))

        def of_whole(k: int) -> str:
            return f"{values[k]:.5g} eV/atom, z = {found.whole[source.formula[k]]:+.0f} of its composition"

        sentence = (
            "{} are of compositions that as a whole lie far from what their elements have on the mean: another "
            "reference, unit or level of theory?"
        )
        yield flag_structures(
            "energy outliers", "warning", source, which, np.abs(found.whole[source.formula[which]]), of_whole, sentence
        )


def check_force_outliers(source: MeasuredSource, asked: AuditSettings) -> Iterator[Flagged]:
    force = source.seen.force.astype(np.float64)
    known = np.isfinite(force)
    if known.sum() < MIN_VALUES_FOR_SPREAD:
        return
    middle = float(np.median(force[known]))
    spread = max(robust.estimate_spread(force[known] - middle), MIN_FORCE_SPREAD)
    z = (force - middle) / spread
    which, wrong = np.flatnonzero(z > asked.report_above), np.flatnonzero(z > asked.quarantine_above)
    if len(which):

        def said(k: int) -> str:
            return f"{force[k]:.4g} eV/Å on an atom, z = {z[k]:.0f}"

        sentence = (
            f"The largest force of {{}} exceeds {middle + spread * asked.report_above:.3g} eV/Å, which is "
            f"{asked.report_above:g} robust standard deviations above the median of {middle:.3g}; "
            f"{_count_quarantined(wrong, asked)}."
        )
        yield flag_structures(
            "force outliers",
            "error" if len(wrong) else "warning",
            source,
            which,
            z[which],
            said,
            sentence,
            wrong,
            "force outlier",
        )


def _count_quarantined(wrong: np.ndarray, asked: AuditSettings) -> str:
    return f"{len(wrong) or 'none'} more than {asked.quarantine_above:g}"


# -------------------------------------------------------------------------------------------------------- geometry
def check_overlap(source: MeasuredSource, asked: AuditSettings) -> Iterator[Flagged]:
    contact = source.seen.contact
    which, wrong = np.flatnonzero(contact < CLOSE_CONTACT), np.flatnonzero(contact < OVERLAPPING_CONTACT)
    if len(which):

        def said(k: int) -> str:
            return f"two atoms at {contact[k]:.2f} of their covalent radii"

        sentence = (
            f"In {{}} two atoms are nearer than {CLOSE_CONTACT:g} of the sum of their covalent radii; in "
            f"{len(wrong) or 'none'} nearer than {OVERLAPPING_CONTACT:g}, which no calculation survives."
        )
        yield flag_structures(
            "overlap",
            "error" if len(wrong) else "warning",
            source,
            which,
            -contact[which],
            said,
            sentence,
            wrong,
            "overlapping atoms",
        )


def check_isolated(source: MeasuredSource, asked: AuditSettings) -> Iterator[Flagged]:
    lonely = source.seen.isolated
    which = np.flatnonzero(lonely)
    if len(which):

        def said(k: int) -> str:
            return f"{lonely[k]} of {source.shards.natoms[k]} atoms"

        cutoff = source.shards.manifest.cutoff
        sentence = f"{{}} have atoms without a neighbour within {cutoff:g} Å: a model learns nothing from these."
        yield flag_structures("isolated", "warning", source, which, lonely[which], said, sentence)


def check_net_force(source: MeasuredSource, asked: AuditSettings) -> Iterator[Flagged]:
    net = source.seen.net
    which = np.flatnonzero(net > MAX_NET_FORCE)
    if len(which):
        zeroed = int((source.seen.unmoved[which] > 0).sum())
        why = (
            "; in most of them some forces are exactly zero, as where those of fixed atoms were left out"
            if 2 * zeroed > len(which)
            else ""
        )

        def said(k: int) -> str:
            return f"{1e3 * net[k]:.3g} meV/Å per atom"

        sentence = (
            f"Forces of {{}} add up to more than {1e3 * MAX_NET_FORCE:g} meV/Å per atom (median of the source "
            f"{1e3 * float(np.nanmedian(net)):.2g}): not the gradient of an energy{why}."
        )
        yield flag_structures("net force", "warning", source, which, net[which], said, sentence)


def check_periodicity(source: MeasuredSource, asked: AuditSettings) -> Iterator[Flagged]:
    seen, pbc, natoms = source.seen, source.shards.pbc.astype(bool), source.shards.natoms
    gaps, has = seen.gaps, (source.shards.flags & HAS_CELL > 0) & np.isfinite(seen.volume)
    dense = has & (seen.volume > CRYSTAL_VOLUMES[0]) & (seen.volume < CRYSTAL_VOLUMES[1])
    filled = dense[:, None] & (gaps < MAX_FILLED_GAP_ANGSTROM)
    empty = has[:, None] & (gaps > MIN_VACUUM_ANGSTROM)
    bulk = ~pbc.any(1) & filled.all(1) & (natoms > 1)
    slab = pbc.any(1) & (~pbc & filled).any(1)
    layers = (pbc & empty).sum(1)

    def said(k: int) -> str:
        widest = " ".join(f"{gap:.1f}" for gap in gaps[k])
        return f"pbc {''.join('FT'[int(p)] for p in pbc[k])}, widest gaps {widest} Å, {seen.volume[k]:.0f} Å³ per atom"

    for which, severity, sentence, worst in (
        (
            bulk,
            "warning",
            "{} are said not to be periodic, but have a cell that their atoms fill: crystals without their images?",
            -seen.volume,
        ),
        (
            slab,
            "warning",
            "{} are said not to be periodic in a direction in which their atoms fill the cell: bulk "
            "labelled as a slab?",
            -seen.volume,
        ),
        (
            pbc.all(1) & (layers == 1),
            "note",
            f"{{}} are periodic in three directions with more than {MIN_VACUUM_ANGSTROM:g} Å of "
            "vacuum in one: slabs, as plane-wave codes have them.",
            gaps.max(1),
        ),
        (
            pbc.all(1) & (layers == 2),
            "note",
            f"{{}} are periodic in three directions with more than {MIN_VACUUM_ANGSTROM:g} Å of "
            "vacuum in two: chains, or molecules that fill a box one way.",
            gaps.max(1),
        ),
        (
            pbc.all(1) & (layers == 3),
            "note",
            f"{{}} are periodic in three directions with more than {MIN_VACUUM_ANGSTROM:g} Å of vacuum in each: molecules in a box.",
            gaps.max(1),
        ),
    ):
        which = np.flatnonzero(which)
        if len(which):
            yield flag_structures("periodicity", severity, source, which, np.nan_to_num(worst[which]), said, sentence)
