"""Check that forces are minus the gradient of the energy, in sign and unit.

Near structures tell most, then the energy of a pair model that is fitted to the forces, then atoms that are so close
that they must repel each other. Where none of these tells anything, the check could not be made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gnnscale.atoms import neighbors, units
from gnnscale.audit import robust
from gnnscale.audit.check_results import Report, Severity, cover, flag_source
from gnnscale.audit.checks import pair_model
from gnnscale.audit.checks.near_pairs import NearPairs, lattice, measure_near_pairs, pick_evenly, sort_as_raw
from gnnscale.audit.checks.pair_model import Correlation, FittedModel
from gnnscale.audit.checks.stress import check_stress
from gnnscale.audit.checks.totals import check_totals
from gnnscale.audit.measure import COVALENT_RADII_ANGSTROM, NO_FORCES, MeasuredSource
from gnnscale.contract.settings import AuditSettings
from gnnscale.data.storage.packed import HAS_STRESS

MIN_PAIRS, MAX_PAIRS = 10, 400  # of near structures; the nearest are taken
MIN_WORK_EV = 0.01  # smaller values are rounding
EXACT_STEP_ANGSTROM = 0.3  # of pairs that tell a factor exactly
MAX_QUARTILE_SPREAD = 0.35  # relative distance of a quartile from the median, up to which the median is exact
MIN_CORRELATION_OF_PAIRS = 0.6
EXACT, ROUGH, ROUGHER, ROUGHEST = (
    0.15,
    math.log(2.5),
    math.log(4),
    math.log(8),
)  # natural logarithms of factors that are no error
DOUBTFUL = math.log(1.6)  # up to this factor a slope without an explanation is doubtful, and not surely wrong
# Atoms nearer than this share of the sum of covalent radii repel each other. Measured: by 5 to 30 eV/Angstrom.
REPULSIVE_CONTACT, REPULSION = 0.7, 12.0
MIN_REPULSION, MAX_CONTACTS = 0.05, 300  # eV/Angstrom of a contact that counts; structures that are read
MIN_AGREEING_CONTACTS = 0.9  # share of the contacts
MAX_NAMED = 3  # explanations in a sentence
HARTREE_PER_BOHR = units.HARTREE / units.BOHR
SLOPE_EXPLANATIONS = {  # change of the energy over work -> its likely cause
    units.HARTREE: "forces in Hartree/Å beside energies in eV",
    1 / units.HARTREE: "energies in Hartree beside forces in eV/Å",
    HARTREE_PER_BOHR: "forces in Hartree/Bohr beside energies in eV",
    1 / HARTREE_PER_BOHR: "forces that were converted from Hartree/Bohr twice",
    1 / units.BOHR: "forces per Bohr read as forces per Å",
    units.BOHR: "positions in Bohr",
    1 / units.KCAL_PER_MOL: "energies in kcal/mol beside forces in eV/Å",
    units.KCAL_PER_MOL: "forces in kcal/mol/Å beside energies in eV",
    1 / units.KJ_PER_MOL: "energies in kJ/mol beside forces in eV/Å",
    units.KJ_PER_MOL: "forces in kJ/mol/Å beside energies in eV",
    1e3: "energies in meV beside forces in eV/Å",
    1e-3: "forces in meV/Å beside energies in eV",
}
PER_ATOM = "energies per atom given as totals"


class Evidence(NamedTuple):
    """The change of the energy over that which the forces explain, and how it was measured."""

    ratio: float  # 1 if forces are minus the gradient of the energy
    of_totals: float  # the same, if the energies were per atom: times the number of atoms
    tolerance: float  # natural logarithm of a factor that is no error
    examined: int
    noun: str
    words: str


def check_agreement(source: MeasuredSource, settings: AuditSettings) -> Iterator[Report]:
    """Check slope, totals and stress, which need the same pairs and the same model."""
    pairs, model = None, None
    if has_slopes(source):
        pairs, model = measure_near_pairs(source), pair_model.fit_pair_model(source)
    found = find_evidence(source, pairs, model)
    yield from check_slope(source, found, pairs, model)
    yield from check_totals(source, (found.ratio, found.of_totals) if found and found.tolerance == EXACT else None)
    yield from check_stress(source, pairs, None if found and not is_in_order(found) else model)


def has_slopes(source: MeasuredSource) -> bool:
    return bool((source.measured.defects & NO_FORCES == 0).any() or (source.shards.flags & HAS_STRESS).any())


def find_evidence(source: MeasuredSource, pairs: NearPairs | None, model: FittedModel | None) -> Evidence | None:
    """Return the most exact evidence that the source has."""
    found = judge_pairs(pairs) if pairs is not None else None
    if found is None and model is not None:
        found = judge_model(model, pair_model.compare_energies(model))
    return found or judge_contacts(source)


def is_in_order(found: Evidence) -> bool:
    return found.ratio > 0 and abs(math.log(found.ratio)) < found.tolerance


def check_slope(
    source: MeasuredSource, found: Evidence | None, pairs: NearPairs | None, model: FittedModel | None
) -> Iterator[Report]:
    if found is None:
        yield cover("slope", source, 0, explain_silence(source, pairs, model))
        return
    yield cover("slope", source, found.examined, "", found.noun)
    if is_in_order(found):
        return
    size = abs(math.log(abs(found.ratio)))
    sign = "gradients stored as forces" if found.ratio < 0 else ""
    causes = [] if size < found.tolerance else list_explanations(found)
    if sign or causes:
        told = " and ".join(filter(None, [sign, " or ".join(causes)]))
        yield flag_source("slope", "error", source, f"{found.words}: {told} would explain this.")
    else:
        severity: Severity = "warning" if size < max(DOUBTFUL, found.tolerance) else "error"
        yield flag_source(
            "slope", severity, source, f"{found.words}: energies and forces do not belong to the same surface."
        )


def list_explanations(found: Evidence) -> list[str]:
    """List the units that explain a ratio, the nearest first."""
    tolerance = min(found.tolerance, ROUGHER)
    away = {words: abs(math.log(abs(found.ratio) / factor)) for factor, words in SLOPE_EXPLANATIONS.items()}
    away[PER_ATOM] = abs(math.log(abs(found.of_totals)))
    named = sorted((distance, words) for words, distance in away.items() if distance < tolerance)
    return [words for _, words in named[:MAX_NAMED]]


def explain_silence(source: MeasuredSource, pairs: NearPairs | None, model: FittedModel | None) -> str:
    """Say why the check could not be made."""
    if not (source.measured.defects & NO_FORCES == 0).any():
        return "no structure has forces"
    if not np.isfinite(source.shards.energy).any():
        return "no structure has an energy"
    near = 0 if pairs is None else int(select_unstrained(pairs).sum())
    return f"{near} pairs of structures are near each other; {describe_model(model)}; few atoms are so close that they must repel"


def describe_model(model: FittedModel | None) -> str:
    if model is None:
        return "too few structures have forces for a pair model"
    fitted = f"a pair model explains {100 * max(model.explained, 0):.0f} % of the forces"
    found = pair_model.compare_energies(model)
    if found is None:
        return f"{fitted}, but no two structures have one composition and cell"
    return f"{fitted}, and its energy correlates by {found.correlation:.2f} with that of {found.structures} structures"


# ---------------------------------------------------------------------------------------------------------- evidence
def select_unstrained(pairs: NearPairs) -> np.ndarray:
    work = np.abs(np.nan_to_num(pairs.force_work))
    return ~pairs.is_strained & (work > 0) & (np.maximum(work, np.abs(pairs.change)) > MIN_WORK_EV)


def judge_pairs(pairs: NearPairs) -> Evidence | None:
    """Judge by the nearest pairs: exactly where their ratios agree, else roughly where work and change correlate."""
    usable = np.flatnonzero(select_unstrained(pairs))
    nearest = pairs.select(usable[np.argsort(pairs.step[usable], kind="stable")][:MAX_PAIRS])
    near = nearest.select(nearest.step < EXACT_STEP_ANGSTROM)
    if len(near.step) >= MIN_PAIRS:
        ratio = near.change / near.force_work
        low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
        if max(middle - low, high - middle) < MAX_QUARTILE_SPREAD * abs(middle):
            words = (
                f"Over {len(ratio):,} pairs of near structures, the energy changes by {middle:.3g} times the work of the "
                f"forces (middle half of the pairs: {low:.3g} to {high:.3g})"
            )
            per_atom = float(np.median(ratio * near.natoms))
            return Evidence(float(middle), per_atom, EXACT, len(ratio), "pairs of near structures", words)
    return judge_correlation_of_pairs(nearest)


def judge_correlation_of_pairs(pairs: NearPairs) -> Evidence | None:
    count = len(pairs.step)
    if count < MIN_PAIRS or not (change := float(np.sqrt(pairs.change @ pairs.change))):
        return None
    work = float(np.sqrt(pairs.force_work @ pairs.force_work))
    correlation = float(pairs.change @ pairs.force_work) / (change * work)
    if abs(correlation) < MIN_CORRELATION_OF_PAIRS:
        return None
    ratio = math.copysign(change / work, correlation)
    words = (
        f"Over {count:,} pairs of structures up to {pairs.step.max():.2g} Å apart, the energy changes by about {ratio:.2g} "
        f"times the work of the forces (correlation {correlation:.2f})"
    )
    return Evidence(
        ratio, ratio * float(np.median(pairs.natoms)), ROUGH, count, "pairs of structures, to a factor of 2.5", words
    )


def judge_model(model: FittedModel, found: Correlation | None) -> Evidence | None:
    """Judge by the energy of the pair model, where it describes the forces and the energies follow it."""
    if found is None or not pair_model.is_telling(model, found):
        return None
    words = (
        f"Over {found.structures} structures, the energy varies by about {found.ratio:.2g} times that of a pair model with "
        f"their forces (correlation {found.correlation:.2f})"
    )
    per_atom = found.ratio * float(np.median(model.packed.natoms))
    noun = "structures with a pair model, to a factor of 4"
    return Evidence(found.ratio, per_atom, ROUGHER, found.structures, noun, words)


def judge_contacts(source: MeasuredSource) -> Evidence | None:
    """Judge by atoms that are so close that they must repel each other."""
    force = find_repulsions(source)
    force = force[np.abs(force) > MIN_REPULSION]
    if len(force) < MIN_PAIRS:
        return None
    size, repelled = float(np.median(np.abs(force))), float((force > 0).mean())
    if MIN_AGREEING_CONTACTS > repelled > 1 - MIN_AGREEING_CONTACTS:
        return None
    sign = 1 if repelled > 0.5 else -1
    words = (
        f"In {len(force)} structures, atoms nearer than {REPULSIVE_CONTACT:g} times the sum of their covalent radii "
        f"{'repel' if sign > 0 else 'attract'} each other by {size:.2g} eV/Å, where a repulsion by about "
        f"{REPULSION:g} is usual"
    )
    ratio = sign * REPULSION / size
    return Evidence(ratio, math.inf, ROUGHEST, len(force), "structures with close atoms, to a factor of 8", words)


def find_repulsions(source: MeasuredSource) -> np.ndarray:
    """Return (structures,) eV/Angstrom, the median force by which close atoms of a structure repel each other."""
    known = (source.measured.defects == 0) & (source.measured.contact < REPULSIVE_CONTACT)
    order = sort_as_raw(source, energies=False)
    close = order[known[order]]
    packed = source.shards.select(close[pick_evenly(len(close), MAX_CONTACTS)])
    reach = 2 * REPULSIVE_CONTACT * float(COVALENT_RADII_ANGSTROM.max())
    edges = neighbors.batch_edges(packed.positions, packed.ptr, packed.cell, packed.pbc, reach)
    i, j, owner = edges.receivers, edges.senders, np.repeat(np.arange(len(packed.natoms)), np.diff(edges.ptr))
    vectors = packed.positions[j] - packed.positions[i] + np.einsum("ei,eij->ej", edges.shifts, lattice(packed)[owner])
    lengths = np.linalg.norm(vectors, axis=1)
    radii = COVALENT_RADII_ANGSTROM[packed.numbers]
    near = (lengths < REPULSIVE_CONTACT * (radii[i] + radii[j])) & (i < j)
    force = ((packed.forces[j] - packed.forces[i]) * vectors).sum(1) / np.maximum(2 * lengths, 1e-6)
    return robust.compute_group_medians(force[near], owner[near], len(packed.natoms))
