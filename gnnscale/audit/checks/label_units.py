"""Checks of the units of lengths, energies and forces of a whole source, which hold at any level of theory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from gnnscale.atoms import units
from gnnscale.audit import measure, robust
from gnnscale.audit.check_results import Finding, Flagged, flag_source
from gnnscale.audit.checks import energy_vs_force
from gnnscale.audit.measure import MeasuredSource
from gnnscale.contract.settings import AuditSettings
from gnnscale.data.formats.plausible import FREE_ATOM_HARTREE

# Median over atoms of the distance to the nearest, over the sum of covalent radii. Of eleven sets, organic to oxide,
# 0.87 to 1.01; values outside this range are of noble gases, or in another unit.
USUAL_CONTACTS = (0.7, 1.4)
ALL_ELECTRON_RATIOS = (
    0.97,
    1.04,
)  # all-electron energies over the sum of free atoms; samples of published sets 1.005 to 1.015
MAX_QUARTILE_SPREAD = (
    0.35  # relative distance of a quartile of energy over work from the median, up to which the median is used
)
MAX_LOG_OF_FACTOR = 0.15  # natural logarithm of measured over expected factor
MIN_SHARED_COMPOSITIONS = 3  # compositions that two sources must share to be compared
HARTREE_PER_BOHR = units.HARTREE / units.BOHR
SLOPE_EXPLANATIONS = {  # energy over work -> its likely cause
    units.HARTREE: "forces in Hartree/Å beside energies in eV",
    1 / units.HARTREE: "energies in Hartree beside forces in eV/Å",
    HARTREE_PER_BOHR: "forces in Hartree/Bohr beside energies in eV",
    1 / units.BOHR: "forces per Bohr read as forces per Å",
    units.BOHR: "positions in Bohr",
    1 / units.KCAL_PER_MOL: "energies in kcal/mol beside forces in eV/Å",
    units.KCAL_PER_MOL: "forces in kcal/mol/Å beside energies in eV",
    1 / units.KJ_PER_MOL: "energies in kJ/mol beside forces in eV/Å",
    units.KJ_PER_MOL: "forces in kJ/mol/Å beside energies in eV",
}
UNITS_BY_RATIO = {  # ratio of two sources -> unit of the first if the second has eV
    "energies": {1 / size: unit for unit, size in units.ENERGY_UNITS.items() if unit != "eV"},
    "forces": {1 / size: f"{unit}/Å" for unit, size in units.ENERGY_UNITS.items() if unit != "eV"}
    | {units.BOHR: "eV/Bohr", 1 / HARTREE_PER_BOHR: "Hartree/Bohr"},
}


def check_lengths(source: MeasuredSource, settings: AuditSettings) -> Iterator[Flagged]:
    total = int(source.nearest.sum())
    if total < 100:
        return
    middle_bin = int(np.searchsorted(np.cumsum(source.nearest), total / 2))
    median = float(measure.CONTACT_BINS[middle_bin]) if middle_bin < len(measure.CONTACT_BINS) - 1 else math.inf
    if USUAL_CONTACTS[0] < median < USUAL_CONTACTS[1]:
        return
    multiple = f"{median:.2f} times" if math.isfinite(median) else "far above"
    sentence = (
        f"The median distance of an atom to its nearest neighbour is {multiple} the sum of their covalent radii; "
        "about 1 is usual"
    )
    for factor, why in (
        (1 / units.BOHR, "lengths in Bohr explain this"),
        (units.BOHR, "lengths in Å that were converted as if from Bohr explain this"),
        (0.1, "lengths in nm explain this"),
    ):
        if 0.8 < median / factor < 1.15:
            yield flag_source("units", "error", source, f"{sentence}: {why}.")
            return
    yield flag_source("units", "warning", source, f"{sentence}: another unit, or atoms without bonds.")


def check_total_energies(source: MeasuredSource, settings: AuditSettings) -> Iterator[Flagged]:
    """Find the unit of all-electron energies, which are within a few per cent of the free atoms at any level of theory."""
    table = np.array([FREE_ATOM_HARTREE.get(int(z), np.nan) for z in source.elements]) * units.HARTREE
    expected = source.formulas.astype(np.float64) @ np.where(np.isnan(table), 0, table)
    expected[(source.formulas[:, np.isnan(table)] > 0).any(1)] = np.nan
    ratio = source.per_atom / expected[source.formula]
    ratio = ratio[np.isfinite(ratio)]
    if len(ratio) < 10:
        return
    median = float(np.median(ratio))
    for unit, size in units.ENERGY_UNITS.items():
        if unit != "eV" and ALL_ELECTRON_RATIOS[0] < median * size < ALL_ELECTRON_RATIOS[1]:
            yield flag_source(
                "units",
                "error",
                source,
                f"Energies seem to be in {unit} instead of eV: in {unit} they are {median * size:.3f} times the "
                "sum of the all-electron energies of their free atoms.",
            )


def check_slopes(source: MeasuredSource, settings: AuditSettings) -> Iterator[Flagged]:
    found = energy_vs_force.measure_slope(source)
    if found is None:
        return
    low, high = found.quartiles
    measured = (
        f"Over {found.pairs:,} pairs of near structures, the energy changes by {found.value:.3g} times the work of "
        f"the forces (middle half of the pairs: {low:.3g} to {high:.3g})"
    )
    size = abs(found.value)
    if max(abs(low - found.value), abs(high - found.value)) > MAX_QUARTILE_SPREAD * size:
        if not low < 1 < high:
            yield flag_source("slope", "note", source, f"{measured}: the scatter is too large for a conclusion.")
        return
    if found.value > 0 and abs(math.log(size)) < MAX_LOG_OF_FACTOR:
        return
    sign = "gradients stored as forces, and " if found.value < 0 else ""
    factor = min(SLOPE_EXPLANATIONS, key=lambda f: abs(math.log(size / f)))
    if found.value < 0 and abs(math.log(size)) < MAX_LOG_OF_FACTOR:
        sentence = f"{measured}: gradients stored as forces explain this."
    elif abs(math.log(size / factor)) < MAX_LOG_OF_FACTOR:
        sentence = f"{measured}: {sign}{SLOPE_EXPLANATIONS[factor]} explain this."
    else:
        sentence = f"{measured}: energies and forces do not belong to the same potential-energy surface."
    yield flag_source("slope", "error", source, sentence)


def check_units_between_sources(sources: Sequence[MeasuredSource], settings: AuditSettings) -> Iterator[Flagged]:
    """Compare the medians of the compositions that two sources share, to find units that differ."""
    for one, two in combinations(sources, 2):
        for what in UNITS_BY_RATIO:
            ratio, shared = compare_medians(one, two, what)
            if shared < MIN_SHARED_COMPOSITIONS or not ratio > 0:
                continue
            near = 0.03 if what == "energies" else MAX_LOG_OF_FACTOR
            for other, mine, value in ((two, one, ratio), (one, two, 1 / ratio)):
                factor = min(UNITS_BY_RATIO[what], key=lambda f: abs(math.log(value / f)))
                if abs(math.log(value / factor)) < near and not (what == "forces" and 1 / 3 < value < 3):
                    sentence = (
                        f"Over {shared} compositions that {mine.name} and {other.name} have in common, {what} of "
                        f"{mine.name} are {value:.4g} times those of {other.name}: {UNITS_BY_RATIO[what][factor]} instead "
                        f"of {'eV' if what == 'energies' else 'eV/Å'} explains this."
                    )
                    yield Flagged(
                        Finding(
                            check="units",
                            severity="warning",
                            source=mine.name,
                            count=0,
                            examined=len(mine.shards),
                            sentence=sentence,
                        )
                    )


def compare_medians(one: MeasuredSource, two: MeasuredSource, what: str) -> tuple[float, int]:
    """Return the median ratio of the medians of one over two, and the number of compositions in common."""
    keys, medians = [], []
    for source in (one, two):
        values = source.per_atom if what == "energies" else source.measured.force.astype(np.float64)
        known = np.isfinite(values)
        key = np.zeros(len(source.formulas), np.uint64)
        key[source.formula] = source.measured.described.composition
        keys.append(key)
        medians.append(robust.compute_group_medians(values[known], source.formula[known], len(source.formulas)))
    _, a, b = np.intersect1d(keys[0], keys[1], return_indices=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = medians[0][a] / medians[1][b]
    ratio = ratio[np.isfinite(ratio)]
    return (float(np.median(ratio)) if len(ratio) else math.nan), len(ratio)
