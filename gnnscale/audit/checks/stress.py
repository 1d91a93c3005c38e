"""Check that stress is the strain derivative of the energy over the volume, positive in tension: sign, unit, components."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

import numpy as np

from gnnscale.atoms import units
from gnnscale.audit.check_results import Report, cover, flag_source
from gnnscale.audit.checks import pair_model
from gnnscale.audit.checks.near_pairs import NearPairs, measure_volumes
from gnnscale.audit.checks.pair_model import FittedModel
from gnnscale.audit.measure import MeasuredSource
from gnnscale.data.storage.packed import HAS_STRESS

MIN_PAIRS = 10
MIN_WORK_EV = 0.01  # smaller values are rounding
MAX_SHARE_OF_FORCES = 0.3  # of the work of the stress: the forces must not decide
STILL_ANGSTROM = 0.02  # a step over which forces do no work that counts
TOLERANCE = math.log(4)  # natural logarithm of a factor that is no error; units of stress differ by 10 and more
STRESS_EXPLANATIONS = {  # change of the energy over the work of the stress -> its likely cause
    units.GPA: "stress in GPa",
    units.KBAR: "stress in kbar",
    units.HARTREE / units.BOHR**3: "stress in Hartree/Bohr³",
    1 / units.HARTREE: "energies in Hartree beside stress in eV/Å³",
    1 / units.KCAL_PER_MOL: "energies in kcal/mol beside stress in eV/Å³",
}
VIRIAL, PER_ATOM = "virials (stress times volume) given as stress", "energies per atom given as totals"
MAX_NAMED = 3  # explanations in a sentence
SHEAR = (1, 0, 0), (2, 2, 1)  # yz xz xy
SHEAR_NAMES = np.array(["yz", "xz", "xy"])
MIN_SHEAR_PAIRS, MAX_MISFIT_OF_ORDER = 10, 0.5  # of the misfit of the given order


class Evidence(NamedTuple):
    """The work that energies or forces ask of the stress, over the work that it does."""

    ratio: float
    of_virials: float  # the same, if virials were given
    of_totals: float  # the same, if energies were per atom
    examined: int
    noun: str
    words: str


def check_stress(source: MeasuredSource, pairs: NearPairs | None, model: FittedModel | None) -> Iterator[Report]:
    """Check by strained pairs, else by the virial of the pair model that is fitted to the forces."""
    if not (source.shards.flags & HAS_STRESS).any():
        yield cover("stress", source, 0, "no structure has a stress")
        return
    strained = select_strained(pairs) if pairs is not None else None
    found = (judge_pairs(strained) if strained else None) or (judge_model(model) if model else None)
    if found is None:
        yield cover("stress", source, 0, explain_silence(strained, model))
        return
    yield cover("stress", source, found.examined, "", found.noun)
    yield from flag_ratio(source, found)
    if strained and is_in_order(found):
        yield from check_order(source, strained)


def is_in_order(found: Evidence) -> bool:
    return found.ratio > 0 and abs(math.log(found.ratio)) < TOLERANCE


def flag_ratio(source: MeasuredSource, found: Evidence) -> Iterator[Report]:
    if is_in_order(found):
        return
    size = abs(found.ratio)
    away = {words: abs(math.log(size / factor)) for factor, words in STRESS_EXPLANATIONS.items()}
    away |= {VIRIAL: abs(math.log(abs(found.of_virials))), PER_ATOM: abs(math.log(abs(found.of_totals)))}
    causes = sorted((d, w) for w, d in away.items() if d < TOLERANCE and abs(math.log(size)) > TOLERANCE)
    parts = ["stress that is positive in compression"] if found.ratio < 0 else []
    parts += [" or ".join(words for _, words in causes[:MAX_NAMED])] if causes else []
    told = " and ".join(parts)
    told = f"{told} would explain this" if told else "stress and energy do not belong to the same surface"
    yield flag_source("stress", "error", source, f"{found.words}: {told}.")


def explain_silence(strained: NearPairs | None, model: FittedModel | None) -> str:
    count = len(strained.step) if strained else 0
    reason = f"{count} pairs of structures differ by a small strain of the cell"
    if model is None:
        return f"{reason}; there are no forces, or wrong ones, for a pair model"
    found = pair_model.compare_stresses(model)
    fitted = "does not vary" if found is None else f"correlates by {found.correlation:.2f} with the stress"
    return f"{reason}; the virial of a pair model with the forces {fitted}"


# ---------------------------------------------------------------------------------------------------------- evidence
def select_strained(pairs: NearPairs) -> NearPairs:
    """Select the pairs between which the stress does most of the work."""
    work = (pairs.tension * pairs.strain).sum((1, 2))
    forces = np.where(np.isnan(pairs.force_work) & (pairs.step < STILL_ANGSTROM), 0, pairs.force_work)
    pairs = pairs._replace(force_work=forces)
    larger = np.maximum(np.abs(work), np.abs(pairs.change))
    known = np.isfinite(work) & np.isfinite(forces) & pairs.is_strained
    return pairs.select(known & (larger > MIN_WORK_EV) & (np.abs(forces) < MAX_SHARE_OF_FORCES * np.abs(pairs.change)))


def judge_pairs(pairs: NearPairs) -> Evidence | None:
    """Judge by pairs that differ by a strain, if most of them agree on the sign."""
    work = (pairs.tension * pairs.strain).sum((1, 2))
    ratio = ((pairs.change - pairs.force_work) / np.where(work == 0, np.nan, work))[work != 0]
    if len(ratio) < MIN_PAIRS:
        return None
    low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
    if low * high < 0:
        return None
    words = (
        f"Over {len(ratio):,} pairs of structures that differ by a small strain, the energy changes by {middle:.3g} times "
        f"the work of the stress (middle half of the pairs: {low:.3g} to {high:.3g})"
    )
    of_virials = float(np.median(ratio * pairs.volume[work != 0]))
    of_totals = float(np.median(ratio * pairs.natoms[work != 0]))
    return Evidence(
        float(middle), of_virials, of_totals, len(ratio), "pairs of strained structures, to a factor of 4", words
    )


def judge_model(model: FittedModel) -> Evidence | None:
    """Judge by the virial of the pair model, where it describes the forces and the stress follows it."""
    found = pair_model.compare_stresses(model)
    if found is None or not pair_model.is_telling(model, found):
        return None
    ratio = 1 / found.ratio
    words = (
        f"Over {found.structures} structures, the virial of a pair model with their forces is about {ratio:.2g} times the "
        f"stress times the volume (correlation {found.correlation:.2f}); if sign and unit of the forces are right"
    )
    volume = float(np.median(measure_volumes(model.packed)))
    noun = "structures with a pair model, to a factor of 4"
    return Evidence(ratio, ratio * volume, math.inf, found.structures, noun, words)


# ------------------------------------------------------------------------------------------------------------- order
def check_order(source: MeasuredSource, pairs: NearPairs) -> Iterator[Report]:
    """Find shear components in another order than yz, xz, xy, as programs differ in it."""
    straight = np.einsum("pii,pii->p", pairs.tension, pairs.strain)
    wanted = pairs.change - pairs.force_work - straight
    stress, strain = (2 * pairs.tension[:, *SHEAR], pairs.strain[:, *SHEAR])  # (P, 3)
    matters = np.abs(stress).max(1) * np.abs(strain).max(1) > MIN_WORK_EV
    if matters.sum() < MIN_SHEAR_PAIRS:
        return
    orders = list(permutations(range(3)))
    works = [(stress[:, order] * strain).sum(1) for order in orders]
    misfits = [float(np.median(np.abs(wanted - work)[matters])) for work in works]
    best = int(np.argmin(misfits))
    if misfits[best] < MAX_MISFIT_OF_ORDER * misfits[0]:
        names = ", ".join(SHEAR_NAMES[list(np.argsort(orders[best]))])
        sentence = (
            f"Over {int(matters.sum()):,} sheared pairs, the energy follows the stress if the components given as yz, xz, "
            f"xy are those of {names}."
        )
        yield flag_source("stress", "error", source, sentence)
