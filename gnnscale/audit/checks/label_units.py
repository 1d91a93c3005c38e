"""Checks of a source as a whole: units of lengths, energies and forces, told by what no level of theory can change."""

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
# 0.87 to 1.01; what is outside of this is of noble gases, or in another unit.
USUAL_CONTACTS = (0.7, 1.4)
ALL_ELECTRON_RATIOS = (
    0.97,
    1.04,
)  # all-electron energies over the sum of free atoms; samples of published sets 1.005 to 1.015
MAX_QUARTILE_SPREAD = (
    0.35  # quartiles of energy over work that lie nearer to their median than this share of it tell a unit
)
MAX_LOG_OF_FACTOR = 0.15  # of a factor
MIN_SHARED_COMPOSITIONS = 3  # compositions that two sources must have in common to be compared
HARTREE_PER_BOHR = units.HARTREE / units.BOHR
SLOPE_EXPLANATIONS = {  # energy over work -> what would make it so
    units.HARTREE: "forces in Hartree/Å beside energies in eV",
    1 / units.HARTREE: "energies in Hartree beside forces in eV/Å",
    HARTREE_PER_BOHR: "forces in Hartree/Bohr beside energies in eV",
    1 / units.BOHR: "forces per Bohr that were taken as per Å",
    units.BOHR: "positions in Bohr",
    1 / units.KCAL_PER_MOL: "energies in kcal/mol beside forces in eV/Å",
    units.KCAL_PER_MOL: "forces in kcal/mol/Å beside energies in eV",
    1 / units.KJ_PER_MOL: "energies in kJ/mol beside forces in eV/Å",
    units.KJ_PER_MOL: "forces in kJ/mol/Å beside energies in eV",
}
UNITS_BY_RATIO = {  # of two sources -> what the first has, if the second has eV
    "energies": {1 / size: f"{unit}" for unit, size in units.ENERGY_UNITS.items() if unit != "eV"},
    "forces": {1 / size: f"{unit}/Å" for unit, size in units.ENERGY_UNITS.items() if unit != "eV"}
    | {units.BOHR: "eV/Bohr", 1 / HARTREE_PER_BOHR: "Hartree/Bohr"},
}


def check_lengths(source: MeasuredSource, asked: AuditSettings) -> Iterator[Flagged]:
    total = int(source.nearest.sum())
    if total < 100:
        return
    bin = int(np.searchsorted(np.cumsum(source.nearest), total / 2))
    median = float(measure.CONTACT_BINS[bin]) if bin < len(measure.CONTACT_BINS) - 1 else math.inf
    if USUAL_CONTACTS[0] < median < USUAL_CONTACTS[1]:
        return
    said = f"{median:.2f} times" if math.isfinite(median) else "over"
    sentence = (
        f"To its nearest neighbour the median atom has {said} the sum of their covalent radii, where about 1 is usual"
    )
    for factor, why in (
        (1 / units.BOHR, "lengths in Bohr would explain it"),
        (units.BOHR, "lengths in Å that were converted from Bohr would explain it"),
        (0.1, "lengths in nm would explain it"),
    ):
        if 0.8 < median / factor < 1.15:
            yield flag_source("units", "error", source, f"{sentence}: {why}.")
            return
    yield flag_source("units", "warning", source, f"{sentence}: another unit, or atoms that hardly touch.")


def check_total_energies(source: MeasuredSource, asked: AuditSettings) -> Iterator[Flagged]:
    """All-electron energies are within a few per cent of those of the free atoms, at any level of theory."""
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
                f"Energies look like {unit} taken for eV: in {unit} they are "
                f"{median * size:.3f} of the sum of their free atoms, all electrons counted.",
            )


def check_slopes(source: MeasuredSource, asked: AuditSettings) -> Iterator[Flagged]:
    found = energy_vs_force.measure_slope(source)
    if found is None:
        return
    low, high = found.quartiles
    measured = (
        f"Over {found.pairs:,} pairs of near structures the energy changes by {found.value:.3g} times the work of "
        f"the forces (half of the pairs: {low:.3g} to {high:.3g})"
    )
    size = abs(found.value)
    if max(abs(low - found.value), abs(high - found.value)) > MAX_QUARTILE_SPREAD * size:
        if not low < 1 < high:
            yield flag_source("slope", "note", source, f"{measured}: they lie too far apart to tell.")
        return
    if found.value > 0 and abs(math.log(size)) < MAX_LOG_OF_FACTOR:
        return
    sign = "gradients taken for forces, and " if found.value < 0 else ""
    factor = min(SLOPE_EXPLANATIONS, key=lambda f: abs(math.log(size / f)))
    if found.value < 0 and abs(math.log(size)) < MAX_LOG_OF_FACTOR:
        sentence = f"{measured}: as gradients taken for forces would have it."
    elif abs(math.log(size / factor)) < MAX_LOG_OF_FACTOR:
        sentence = f"{measured}: as {sign}{SLOPE_EXPLANATIONS[factor]} would have it."
    else:
        sentence = f"{measured}: energies and forces are not of one surface."
    yield flag_source("slope", "error", source, sentence)


def check_units_between_sources(sources: Sequence[MeasuredSource], asked: AuditSettings) -> Iterator[Flagged]:
    """Two sources that have compositions in common, by the medians of these."""
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
                        f"Of {shared} compositions that {mine.name} and {other.name} have in common, {what} of "
                        f"{mine.name} are {value:.4g} of those of {other.name}: as {UNITS_BY_RATIO[what][factor]} taken "
                        f"for {'eV' if what == 'energies' else 'eV/Å'} would have it."
                    )
                    yield Flagged(
                        Finding(
                            check="units",
                            severity="warning",
                            source=mine.name,
                            count=0,
                            of=len(mine.shards),
                            sentence=sentence,
                        )
                    )


def compare_medians(one: MeasuredSource, two: MeasuredSource, what: str) -> tuple[float, int]:
    """(median ratio of the medians of one over two, compositions in common)"""
    keys, medians = [], []
    for source in (one, two):
        values = source.per_atom if what == "energies" else source.seen.force.astype(np.float64)
        known = np.isfinite(values)
        key = np.zeros(len(source.formulas), np.uint64)
        key[source.formula] = source.seen.described.composition
        keys.append(key)
        medians.append(robust.compute_group_medians(values[known], source.formula[known], len(source.formulas)))
    _, a, b = np.intersect1d(*keys, return_indices=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = medians[0][a] / medians[1][b]
    ratio = ratio[np.isfinite(ratio)]
    return (float(np.median(ratio)) if len(ratio) else math.nan), len(ratio)
