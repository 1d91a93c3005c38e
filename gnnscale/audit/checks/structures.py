"""Checks of one structure at a time: numbers, labels, outliers, distances, net force, cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gnnscale.audit import measure, robust
from gnnscale.audit.check_results import Report, Severity, cover, describe_all_as, flag_source, flag_structures
from gnnscale.audit.measure import MeasuredSource
from gnnscale.contract.settings import AuditSettings
from gnnscale.data.storage.packed import HAS_CELL, HAS_STRESS

ARTICLES = {"energy": "an ", "forces": "", "stress": "a "}
MIN_STRUCTURES_OF_COMPOSITION = 8  # a composition with fewer structures is compared by elements
MIN_VALUES_FOR_SPREAD = 20  # fewer values do not determine a spread
MIN_ENERGY_SPREAD, MIN_FORCE_SPREAD = 1e-3, 1e-2  # eV/atom, eV/Angstrom: smaller deviations are no defect
# Of the sum of covalent radii. The smallest in the random structures of MAD is 0.44, in other sets 0.57.
CLOSE_CONTACT, OVERLAPPING_CONTACT = 0.5, 0.35
COMPRESSED_CONTACT = 0.6  # below it, energies and forces may be as large as they like
# eV/Angstrom. Real atoms below OVERLAPPING_CONTACT repel each other by more; OC20 and OMat24 drop structures above it.
MAX_LIKELY_FORCE = 50.0
# eV/Angstrom per atom. Published sets are below 1e-4, SPICE at 1e-3, those with a known defect above 1e-2.
MAX_NET_FORCE = 5e-3
MIN_VACUUM_ANGSTROM, MAX_FILLED_GAP_ANGSTROM = 8.0, 3.0  # layers without the centre of an atom
CRYSTAL_VOLUMES = (3.0, 60.0)  # Angstrom^3 per atom of a crystal
NOT_PERIODIC = "{} are labelled as not periodic, but the atoms fill the cell: is this a crystal with the wrong pbc?"
NOT_PERIODIC_IN_ONE_DIRECTION = (
    "{} are labelled as not periodic in a direction in which the atoms fill the cell: is this a bulk crystal labelled "
    "as a slab?"
)


def check_finite(source: MeasuredSource, settings: AuditSettings) -> Iterator[Report]:
    yield cover("finite", source, len(source.shards), "")
    for bit, what in (
        (measure.BAD_GEOMETRY, "positions or lattice vectors are not finite, or span no volume"),
        (measure.BAD_ENERGY, "the energy is infinite"),
        (measure.BAD_FORCES, "some components of the forces are not finite"),
        (measure.BAD_STRESS, "some components of the stress are not finite"),
    ):
        which = np.flatnonzero(source.measured.defects & bit)
        if len(which):
            sentence = f"In {{}}, {what}."
            yield flag_structures(
                "finite", "error", source, which, np.ones(len(which)), describe_all_as(what), sentence, which, what
            )


def check_labels(source: MeasuredSource, settings: AuditSettings) -> Iterator[Report]:
    shards, measured = source.shards, source.measured
    yield cover("labels", source, len(shards), "")
    periodic = shards.pbc.any(1)
    lacking = {
        "energy": np.isnan(shards.energy),
        "forces": measured.defects & measure.NO_FORCES > 0,
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
            sentence = f"{{}} of {among:,} {verb} no {label}, but others do."
            yield flag_structures(
                "labels", "warning", source, which, np.zeros(len(which)), describe_all_as(f"no {label}"), sentence
            )
    still = np.flatnonzero((measured.unmoved == shards.natoms) & (shards.natoms > 1) & ~periodic)
    if len(still):
        sentence = "In {}, none of them periodic, every force is exactly zero; perhaps forces were not computed."
        yield flag_structures(
            "labels", "warning", source, still, shards.natoms[still], lambda k: "all forces are 0", sentence
        )


# --------------------------------------------------------------------------------------------------------- outliers
class Deviations(NamedTuple):
    """Deviations from the median of comparable structures in robust standard deviations; NaN if too few are comparable."""

    z: np.ndarray  # (S,)
    kind: np.ndarray  # (S,) bool: compared with the same composition; otherwise by elements
    whole: np.ndarray  # (formulas,) deviation of the median of a composition from the mean of its elements


def compute_deviations(values: np.ndarray, source: MeasuredSource) -> Deviations:
    """Compute deviations within each frequent composition; for the others, from a fit of one value per element."""
    known, formula, formulas = np.isfinite(values), source.formula, len(source.formulas)
    counts = np.bincount(formula[known], minlength=formulas)
    middle = robust.compute_group_medians(values[known], formula[known], formulas)
    frequent = counts >= MIN_STRUCTURES_OF_COMPOSITION
    same = known & frequent[formula]
    away = np.where(known, values - middle[formula], np.nan)
    pooled = robust.estimate_spread(
        away[same]
    )  # over all compositions: the spread of one relaxation is small, as most of its frames are near its end
    own = robust.STANDARD_DEVIATIONS_PER_MAD * robust.compute_group_medians(
        np.abs(away[known]), formula[known], formulas
    )
    within = np.maximum(np.hypot(own, pooled), MIN_ENERGY_SPREAD)
    z = np.where(same & (same.sum() >= MIN_VALUES_FOR_SPREAD), away / within[formula], np.nan)
    whole, present = np.full(formulas, np.nan), np.flatnonzero(counts)
    if len(present) >= MIN_VALUES_FOR_SPREAD:
        rows = source.formulas[present].astype(np.float64)
        taken = rows @ robust.fit_least_absolute(rows, middle[present], counts[present].astype(np.float64))
        left = middle[present] - taken
        between = max(robust.estimate_spread(left), pooled, MIN_ENERGY_SPREAD)
        whole[present] = left / between
        rest, base = known & ~same, np.zeros(formulas)
        base[present] = taken
        z[rest] = (values[rest] - base[formula[rest]]) / between
    return Deviations(z, same, np.where(frequent, whole, np.nan))


def check_energy_outliers(source: MeasuredSource, settings: AuditSettings) -> Iterator[Report]:
    values = np.where(np.isfinite(source.shards.energy), source.per_atom, np.nan)
    found = compute_deviations(values, source)
    known = np.isfinite(values)
    reason = (
        f"no {MIN_STRUCTURES_OF_COMPOSITION} structures have one composition, or fewer than {MIN_VALUES_FOR_SPREAD} in all, "
        f"and there are fewer than {MIN_VALUES_FOR_SPREAD} compositions"
    )
    yield cover(
        "energy outliers", source, np.isfinite(found.z), reason if known.any() else "no structure has an energy"
    )
    which = np.flatnonzero(np.abs(found.z) > settings.report_above)
    if len(which):
        explained = (found.z > 0) & is_compressed(source)
        wrong = np.flatnonzero((np.abs(found.z) > settings.quarantine_above) & ~explained)

        def describe(k: int) -> str:
            among = "within its composition" if found.kind[k] else "from the mean of its elements"
            return f"{values[k]:.5g} eV/atom, z = {found.z[k]:+.0f} {among}"

        sentence = (
            f"The energy of {{}} is more than {settings.report_above:g} robust standard deviations away from others of the "
            f"same composition, or from the mean of its elements; {_count_quarantined(wrong, settings)}."
        )
        yield flag_structures(
            "energy outliers",
            "error" if len(wrong) else "warning",
            source,
            which,
            np.abs(found.z[which]),
            describe,
            sentence,
            wrong,
            "energy outlier",
        )
    odd = np.flatnonzero(np.abs(found.whole) > settings.report_above)
    if len(odd):
        which = np.flatnonzero(np.isin(source.formula, odd) & np.isfinite(values))

        def describe_formula(k: int) -> str:
            return f"{values[k]:.5g} eV/atom, z = {found.whole[source.formula[k]]:+.0f} for its composition"

        sentence = (
            "{} have compositions whose median energy is far from the mean of their elements: another reference, unit "
            "or level of theory?"
        )
        yield flag_structures(
            "energy outliers",
            "warning",
            source,
            which,
            np.abs(found.whole[source.formula[which]]),
            describe_formula,
            sentence,
        )


def check_force_outliers(source: MeasuredSource, settings: AuditSettings) -> Iterator[Report]:
    force = source.measured.force.astype(np.float64)
    known = np.isfinite(force)
    count = int(known.sum())
    reason = f"only {count} structures have forces" if count else "no structure has forces"
    yield cover("force outliers", source, count if count >= MIN_VALUES_FOR_SPREAD else 0, reason)
    if count < MIN_VALUES_FOR_SPREAD:
        return
    yield from check_size_of_forces(source, force)
    middle = float(np.median(force[known]))
    spread = max(robust.estimate_spread(force[known] - middle), MIN_FORCE_SPREAD)
    z = (force - middle) / spread
    which = np.flatnonzero(z > settings.report_above)
    surely = (z > settings.quarantine_above) & (force > MAX_LIKELY_FORCE) & ~is_compressed(source)
    wrong = np.flatnonzero(surely)
    if len(which):

        def describe(k: int) -> str:
            return f"{force[k]:.4g} eV/Å on an atom, z = {z[k]:.0f}"

        sentence = (
            f"The largest force of {{}} exceeds {middle + spread * settings.report_above:.3g} eV/Å, which is "
            f"{settings.report_above:g} robust standard deviations above the median, {middle:.3g} eV/Å; "
            f"{_count_quarantined(wrong, settings)}."
        )
        yield flag_structures(
            "force outliers",
            "error" if len(wrong) else "warning",
            source,
            which,
            z[which],
            describe,
            sentence,
            wrong,
            "force outlier",
        )


def check_size_of_forces(source: MeasuredSource, force: np.ndarray) -> Iterator[Report]:
    """Find forces in another unit by their size, where no atoms are close."""
    usual = force[np.isfinite(force) & ~is_compressed(source)]
    if len(usual) and (median := float(np.median(usual))) > MAX_LIKELY_FORCE:
        sentence = (
            f"The median of the largest force of a structure is {median:.3g} eV/Å, although no two atoms are close: "
            "another unit?"
        )
        yield flag_source("force outliers", "error", source, sentence)


def is_compressed(source: MeasuredSource) -> np.ndarray:
    """Find structures with a contact that explains a high energy or force, as in the first steps of a relaxation: (S,) bool."""
    return np.asarray(source.measured.contact < COMPRESSED_CONTACT)


def _count_quarantined(wrong: np.ndarray, settings: AuditSettings) -> str:
    return f"for {len(wrong) or 'none'} it is more than {settings.quarantine_above:g}, and no close contact explains it"


# -------------------------------------------------------------------------------------------------------- geometry
def is_sound(source: MeasuredSource) -> np.ndarray:
    return np.asarray(source.measured.defects & measure.BAD_GEOMETRY == 0)


def check_overlap(source: MeasuredSource, settings: AuditSettings) -> Iterator[Report]:
    contact, force = source.measured.contact, source.measured.force
    yield cover("overlap", source, is_sound(source), "no geometry is sound")
    which = np.flatnonzero(contact < CLOSE_CONTACT)
    wrong = np.flatnonzero((contact < OVERLAPPING_CONTACT) & ~(force > MAX_LIKELY_FORCE))
    if len(which):

        def describe(k: int) -> str:
            return f"two atoms at {contact[k]:.2f} times the sum of their covalent radii"

        sentence = (
            f"In {{}}, two atoms are closer than {CLOSE_CONTACT:g} times the sum of their covalent radii; in "
            f"{len(wrong) or 'none'}, closer than {OVERLAPPING_CONTACT:g} times without the repulsion of such atoms."
        )
        yield flag_structures(
            "overlap",
            "error" if len(wrong) else "warning",
            source,
            which,
            -contact[which],
            describe,
            sentence,
            wrong,
            "overlapping atoms",
        )


def check_isolated(source: MeasuredSource, settings: AuditSettings) -> Iterator[Report]:
    lonely = source.measured.isolated
    yield cover("isolated", source, is_sound(source), "no geometry is sound")
    which = np.flatnonzero(lonely)
    if len(which):

        def describe(k: int) -> str:
            return f"{lonely[k]} of {source.shards.natoms[k]} atoms are isolated"

        cutoff = source.shards.manifest.cutoff
        sentence = f"{{}} have atoms without a neighbour within {cutoff:g} Å: a model does not learn from these."
        yield flag_structures("isolated", "warning", source, which, lonely[which], describe, sentence)


def check_net_force(source: MeasuredSource, settings: AuditSettings) -> Iterator[Report]:
    net = source.measured.net
    yield cover("net force", source, np.isfinite(net), "no structure has forces")
    which = np.flatnonzero(net > MAX_NET_FORCE)
    if len(which):
        zeroed = int((source.measured.unmoved[which] > 0).sum())
        why = (
            "; in most of them some forces are exactly zero, as if those of fixed atoms were left out"
            if 2 * zeroed > len(which)
            else ""
        )

        def describe(k: int) -> str:
            return f"{1e3 * net[k]:.3g} meV/Å per atom"

        sentence = (
            f"The forces of {{}} add up to more than {1e3 * MAX_NET_FORCE:g} meV/Å per atom (median of the source "
            f"{1e3 * float(np.nanmedian(net)):.2g}): they are not the gradient of an energy{why}."
        )
        yield flag_structures("net force", "warning", source, which, net[which], describe, sentence)


def check_periodicity(source: MeasuredSource, settings: AuditSettings) -> Iterator[Report]:
    measured, pbc, natoms = source.measured, source.shards.pbc.astype(bool), source.shards.natoms
    yield cover("periodicity", source, is_sound(source), "no geometry is sound")
    gaps, has = measured.gaps, (source.shards.flags & HAS_CELL > 0) & np.isfinite(measured.volume)
    dense = has & (measured.volume > CRYSTAL_VOLUMES[0]) & (measured.volume < CRYSTAL_VOLUMES[1])
    filled = dense[:, None] & (gaps < MAX_FILLED_GAP_ANGSTROM)
    empty = has[:, None] & (gaps > MIN_VACUUM_ANGSTROM)
    bulk = ~pbc.any(1) & filled.all(1) & (natoms > 1)
    slab = pbc.any(1) & (~pbc & filled).any(1)
    layers = (pbc & empty).sum(1)

    def describe(k: int) -> str:
        widest = " ".join(f"{gap:.1f}" for gap in gaps[k])
        return (
            f"pbc {''.join('FT'[int(p)] for p in pbc[k])}, widest gaps {widest} Å, {measured.volume[k]:.0f} Å³ per atom"
        )

    vacuum = f"{{}} are periodic in three directions with more than {MIN_VACUUM_ANGSTROM:g} Å of vacuum in"
    kinds: tuple[tuple[np.ndarray, Severity, str, np.ndarray], ...] = (
        (bulk, "warning", NOT_PERIODIC, -measured.volume),
        (slab, "warning", NOT_PERIODIC_IN_ONE_DIRECTION, -measured.volume),
        (
            pbc.all(1) & (layers == 1),
            "note",
            f"{vacuum} one: slabs, as plane-wave codes represent them.",
            gaps.max(1),
        ),
        (
            pbc.all(1) & (layers == 2),
            "note",
            f"{vacuum} two: chains, or molecules as long as their box.",
            gaps.max(1),
        ),
        (pbc.all(1) & (layers == 3), "note", f"{vacuum} each: molecules in a box.", gaps.max(1)),
    )
    for mask, severity, sentence, worst in kinds:
        which = np.flatnonzero(mask)
        if len(which):
            yield flag_structures(
                "periodicity", severity, source, which, np.nan_to_num(worst[which]), describe, sentence
            )
