"""Check that energies are totals of a structure: they grow with its size, have the size of known ones, or a slope of 1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gnnscale.atoms import units
from gnnscale.atoms.atomic_energies import CRYSTAL_EV, FREE_ATOM_HARTREE
from gnnscale.audit import robust
from gnnscale.audit.check_results import Report, Severity, cover, flag_source
from gnnscale.audit.measure import MeasuredSource

ALL_ELECTRON_RATIOS = (0.97, 1.04)  # of the sum of free atoms; samples of published sets 1.005 to 1.015
VALENCE_RATIOS = (0.6, 1.6)  # of the sum of elemental crystals, of the median of a set with VASP's valence electrons
MIN_STRUCTURES = 10
MIN_SPARE_ROWS = 5  # compositions and sizes beyond those that the fit needs
ROUNDS_OF_FIT = 5  # enough, as the misfits of the two hypotheses differ by factors
MIN_SPREAD_OF_SIZES = 0.15  # of the natural logarithm of the number of atoms
MAX_MISFIT = 0.25  # of a fit by elements, over the size of the energies
MIN_ADVANTAGE = 2.0  # of the misfit of one hypothesis over that of the other
MAX_LOG_OF_SLOPE = 0.15
MIN_ATOMS = 1.5  # median of a source


class Misfits(NamedTuple):
    """Relative errors of fits of one energy per element."""

    totals: float  # to energies over the number of atoms
    per_atom: float  # to the energies as they are
    structures: int


def check_totals(source: MeasuredSource, slope: tuple[float, float] | None) -> Iterator[Report]:
    """Check by the sizes of structures, by known energies, and by the slope of near pairs if there is one.

    slope: the change of the energies over the work of the forces, and the same times the number of atoms.
    """
    known, found = int(np.isfinite(source.shards.energy).sum()), fit_by_elements(source)
    fault, noun = find_fault(source, found, slope), "structures"
    if fault is None and (noun := find_proof(source, found, slope)) == "":
        yield cover("totals", source, 0, explain_silence(known))
        return
    yield cover("totals", source, known, "", noun)
    if fault is not None:
        severity, sentence = fault
        yield flag_source("totals", severity, source, sentence)


def find_fault(
    source: MeasuredSource, found: Misfits | None, slope: tuple[float, float] | None
) -> tuple[Severity, str] | None:
    """Return how sure it is that energies are per atom, and the evidence in words; None if nothing speaks for it."""
    if found and found.per_atom < MAX_MISFIT and found.per_atom * MIN_ADVANTAGE < found.totals:
        return "error", describe_misfit(found)
    ratio = compare_with_free_atoms(source)
    of_atoms = ratio * float(np.median(source.shards.natoms))
    if is_all_electron(of_atoms) and has_several_atoms(source):
        units_too = [unit for unit, size in units.ENERGY_UNITS.items() if is_all_electron(ratio * size)]
        return ("warning" if units_too else "error"), describe_ratio(of_atoms, units_too)
    if slope and has_several_atoms(source) and abs(math.log(abs(slope[1]))) < MAX_LOG_OF_SLOPE:
        return "warning", (
            f"Times the number of atoms, energies change by {slope[1]:.3g} times the work of the forces: they may be given "
            "per atom instead of as totals."
        )
    return None


def find_proof(source: MeasuredSource, found: Misfits | None, slope: tuple[float, float] | None) -> str:
    """Return of which structures, and by what, energies are known to be totals; "" if nothing tells."""
    if found and found.totals < MAX_MISFIT and found.totals * MIN_ADVANTAGE < found.per_atom:
        return "structures of several sizes"
    if is_all_electron(compare_with_free_atoms(source)) and has_several_atoms(source):
        return "structures, against free atoms"
    if slope and has_several_atoms(source) and abs(math.log(abs(slope[0]))) < MAX_LOG_OF_SLOPE:
        return "structures, whose energies change by the work of all forces"
    return ""


def has_several_atoms(source: MeasuredSource) -> bool:
    """Tell whether totals differ from energies per atom by more than what is ascribed to chance."""
    return float(np.median(source.shards.natoms)) > MIN_ATOMS


def explain_silence(known: int) -> str:
    if not known:
        return "no structure has an energy"
    return (
        "sizes vary too little, or references are subtracted; energies are not those of all electrons, and too few "
        "structures are near each other for a comparison with forces"
    )


def describe_misfit(found: Misfits) -> str:
    return (
        f"Over {found.structures:,} structures of several sizes, energies do not grow with the number of atoms: one energy "
        f"per element fits them to {100 * found.per_atom:.2g} % as they are, and to {100 * found.totals:.2g} % over the "
        "number of atoms. Energies per atom given as totals would explain this."
    )


def describe_ratio(ratio: float, units_too: list[str]) -> str:
    also = f", or in {' or '.join(units_too)}" if units_too else ""
    return (
        f"Times the number of atoms, energies are {ratio:.3f} times the sum of the all-electron energies of their free "
        f"atoms: they are given per atom instead of as totals{also}."
    )


def is_all_electron(ratio: float) -> bool:
    return ALL_ELECTRON_RATIOS[0] < ratio < ALL_ELECTRON_RATIOS[1]


def fit_by_elements(source: MeasuredSource) -> Misfits | None:
    """Fit energies by elements under both hypotheses, or return None where sizes do not tell them apart."""
    shards = source.shards
    known = np.flatnonzero(np.isfinite(shards.energy))
    if len(known) < MIN_STRUCTURES:
        return None
    keys, row, counts = np.unique(
        np.stack([source.formula[known], shards.natoms[known]]), axis=1, return_inverse=True, return_counts=True
    )
    shares, sizes = source.formulas[keys[0]].astype(np.float64), keys[1].astype(np.float64)
    energy = robust.compute_group_medians(shards.energy[known], row.ravel(), len(counts))
    spread = np.sqrt(np.cov(np.log(sizes), aweights=counts)) if len(counts) > 1 else 0.0
    if len(counts) < len(source.elements) + MIN_SPARE_ROWS or spread < MIN_SPREAD_OF_SIZES:
        return None
    misfits = [measure_misfit(shares, values, counts) for values in (energy / sizes, energy)]
    return Misfits(misfits[0], misfits[1], len(known))


def measure_misfit(shares: np.ndarray, values: np.ndarray, counts: np.ndarray) -> float:
    """Return the median error of a fit of one value per element, over the median size of the values."""
    left = values - shares @ robust.fit_least_absolute(shares, values, counts.astype(np.float64), ROUNDS_OF_FIT)
    weights = np.zeros(len(values), np.int64)
    error, size = (float(robust.compute_group_medians(np.abs(v), weights, 1)[0]) for v in (left, values))
    return error / max(size, 1e-9)


def compare_with_free_atoms(source: MeasuredSource) -> float:
    """Return the median of the energies over those of the free atoms with all electrons; 0 where too few are known."""
    return compare_with_table(source, {z: e * units.HARTREE for z, e in FREE_ATOM_HARTREE.items()})


def compare_with_crystals(source: MeasuredSource) -> float:
    """Return the median of the energies over those of elemental crystals, of valence electrons; 0 where too few are known."""
    return compare_with_table(source, CRYSTAL_EV)


def compare_with_table(source: MeasuredSource, energies: dict[int, float]) -> float:
    table = np.array([energies.get(int(z), np.nan) for z in source.elements])
    expected = source.formulas.astype(np.float64) @ np.where(np.isnan(table), 0, table)
    expected[(source.formulas[:, np.isnan(table)] > 0).any(1) | (expected == 0)] = np.nan
    ratio = source.per_atom / expected[source.formula]
    ratio = ratio[np.isfinite(ratio)]
    return float(np.median(ratio)) if len(ratio) >= MIN_STRUCTURES else 0.0
