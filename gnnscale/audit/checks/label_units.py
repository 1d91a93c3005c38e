"""Checks of the units of lengths, energies and forces of a whole source, which hold at any level of theory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from gnnscale.atoms import units
from gnnscale.audit import measure, robust
from gnnscale.audit.check_results import Finding, Flagged, Report, cover, flag_source
from gnnscale.audit.checks import totals
from gnnscale.audit.measure import MeasuredSource
from gnnscale.contract.settings import AuditSettings

# Median over atoms of the distance to the nearest, over the sum of covalent radii. Of eleven sets, organic to oxide,
# 0.87 to 1.01; values outside this range are of noble gases, or in another unit.
USUAL_CONTACTS = (0.7, 1.4)
MIN_ATOMS = 100  # fewer do not determine a median distance
MAX_LOG_OF_FACTOR = 0.15  # natural logarithm of measured over expected factor
MIN_SHARED_COMPOSITIONS = 3  # compositions that two sources must share to be compared
HARTREE_PER_BOHR = units.HARTREE / units.BOHR
UNITS_BY_RATIO = {  # ratio of two sources -> unit of the first if the second has eV
    "energies": {1 / size: unit for unit, size in units.ENERGY_UNITS.items() if unit != "eV"},
    "forces": {1 / size: f"{unit}/Å" for unit, size in units.ENERGY_UNITS.items() if unit != "eV"}
    | {units.BOHR: "eV/Bohr", 1 / HARTREE_PER_BOHR: "Hartree/Bohr"},
}


def check_lengths(source: MeasuredSource, settings: AuditSettings) -> Iterator[Report]:
    total = int(source.nearest.sum())
    yield cover("lengths", source, total if total >= MIN_ATOMS else 0, f"there are only {total} atoms", "atoms")
    if total < MIN_ATOMS:
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
            yield flag_source("lengths", "error", source, f"{sentence}: {why}.")
            return
    yield flag_source("lengths", "warning", source, f"{sentence}: another unit, or atoms without bonds.")


def check_energy_unit(source: MeasuredSource, settings: AuditSettings) -> Iterator[Report]:
    """Compare with known energies: all-electron energies are within a few per cent of the free atoms at any level of theory."""
    ratio, of_crystals = totals.compare_with_free_atoms(source), totals.compare_with_crystals(source)
    known = int(np.isfinite(source.shards.energy).sum())
    per_atom = totals.is_all_electron(ratio * float(np.median(source.shards.natoms)))
    also = ", if they are not given per atom" if per_atom else ""
    for unit, size in units.ENERGY_UNITS.items():
        if not totals.is_all_electron(ratio * size):
            continue
        yield cover("energy unit", source, known, "", "structures, against free atoms")
        if unit != "eV":
            yield flag_source(
                "energy unit",
                "error",
                source,
                f"Energies seem to be in {unit} instead of eV: in {unit} they are {ratio * size:.3f} times the sum of the "
                f"all-electron energies of their free atoms{also}.",
            )
        return
    if totals.VALENCE_RATIOS[0] < of_crystals < totals.VALENCE_RATIOS[1]:
        yield cover("energy unit", source, known, "", "structures, against elemental crystals")
        return
    reason = (
        "energies are neither near those of all electrons of free atoms nor near those of elemental crystals in VASP"
    )
    yield cover("energy unit", source, 0, reason if known else "no structure has an energy")


def check_units_between_sources(sources: Sequence[MeasuredSource], settings: AuditSettings) -> Iterator[Report]:
    """Compare the medians of the compositions that two sources share, to find units that differ."""
    for source in sources if len(sources) > 1 else ():
        most = max(compare_medians(source, other, "energies")[1] for other in sources if other is not source)
        most = most if most >= MIN_SHARED_COMPOSITIONS else 0
        reason = f"no other source has energies for {MIN_SHARED_COMPOSITIONS} of its compositions"
        yield cover("shared units", source, most, reason, "compositions in common with another source")
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
                            check="shared units",
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
