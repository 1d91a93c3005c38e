"""The findings of a fit and their limits, in sentences whose every number and verdict is computed.

The claims examined are those of arXiv 2504.08112: data scaling beats model scaling, and width beats depth past three
layers. The first two findings are the summary of the report.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from gnnscale.contract.scaling_results import Point
from gnnscale.contract.settings import ScalingSettings
from gnnscale.scaling.by_architecture import compare_exponents
from gnnscale.scaling.comparisons import contrasts, data_vs_steps, random_vs_prefix
from gnnscale.scaling.comparisons.doublings import MIN_SIZES, DoublingGains, measure_doublings
from gnnscale.scaling.comparisons.width_vs_depth import describe_depth_limits, judge_depth_claim
from gnnscale.scaling.fitting.fit import central_interval
from gnnscale.scaling.fitting.fitted import FittedLaw
from gnnscale.scaling.fitting.identifiability import MAX_RESIDUAL
from gnnscale.scaling.fitting.laws import JOINT_FORMS
from gnnscale.scaling.grid import WHERE_MODEL, Grid, average_seeds
from gnnscale.scaling.words import (
    GREEK_LETTERS,
    TARGET_NAMES,
    format_estimate,
    format_percent,
    join_names,
    with_greek_letters,
)

TOO_FEW_SIZES = (
    "All else equal, the runs are of too few sizes for a law of N and D: the study was laid out for a comparison."
)


def write_findings(
    points: list[Point], grid: Grid, fitted: list[FittedLaw], settings: ScalingSettings
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the findings, and sentences about what the points do not support."""
    others = [f for f in fitted if f.entry.where.startswith(WHERE_MODEL)]
    fitted = [f for f in fitted if not f.entry.where.startswith(WHERE_MODEL)]
    joint = [f for f in fitted if f.entry.law == "Hoffmann"]
    if not joint:
        return ("No run is usable, so there is no law.",), ("Everything: there are no usable points.",)
    gains = [measure_doublings(f.entry.target, f.points, settings.confidence) for f in joint]
    prefixes = random_vs_prefix.describe_subset_bias(points, settings.targets[:1])
    depth = judge_depth_claim(points, settings.targets)
    contrasted = contrasts.describe_contrasts(points, settings.targets, TARGET_NAMES)
    seeds = describe_seeds(points, settings.targets)
    measurable = None not in gains[0].corner.values()
    if len(average_seeds(joint[0].points, joint[0].entry.target)) < MIN_SIZES or (contrasted and not measurable):
        findings = [*prefixes, *depth, *contrasted, TOO_FEW_SIZES, *seeds]
        return drop_empty(findings), drop_empty(
            [describe_depth_limits(points) if depth else "", explain_one_seed(points)]
        )
    data = [describe_corner(gains[0], joint[0].points), judge_data_claim(gains, settings)]
    tradeoffs = [line for target in settings.targets for line in describe_tradeoffs(points, grid, target)]
    findings = [
        *prefixes,  # the first sentences are the summary: what the study was laid out for
        *(data + depth if measurable else depth + data),
        describe_other_targets(gains[1:]),
        describe_average(gains),
        *describe_laws(grid, joint, fitted, others, settings),
        *tradeoffs,
        *(contrasted if measurable else []),
        describe_basis(points, grid, joint[0]),
        describe_other_units(joint[0].points),
        *seeds,
    ]
    limits = [
        describe_extrapolation(joint, fitted),
        describe_undetermined(fitted, joint),
        explain_no_allocation(joint),
        explain_unique_data(grid, bool(tradeoffs)),
        describe_depth_limits(points),
        explain_one_seed(points),
    ]
    return drop_empty(findings), drop_empty(limits)


def describe_laws(
    grid: Grid, joint: list[FittedLaw], fitted: list[FittedLaw], others: list[FittedLaw], settings: ScalingSettings
) -> list[str]:
    return [
        judge_joint_law(joint),
        *describe_steepening(joint),
        *describe_nested_laws([f for f in fitted if f.entry.chosen and f.entry.law != "Hoffmann"]),
        *(describe_exponents(f, settings) for f in joint),
        *(describe_allocation(f) for f in joint),
        *compare_exponents(grid.model, joint[0], fitted, others),
        *compare_joint_forms(joint, fitted),
        *describe_repeated_data(fitted),
    ]


def drop_empty(sentences: list[str]) -> tuple[str, ...]:
    return tuple(sentence for sentence in sentences if sentence)


def describe_tradeoffs(points: list[Point], grid: Grid, target: str) -> list[str]:
    return data_vs_steps.describe_tradeoffs(data_vs_steps.find_tradeoffs(points, grid, target), target)


# ------------------------------------------------------------------------------------------------- data against model
def describe_corner(gains: DoublingGains, points: tuple[Point, ...]) -> str:
    n, d = max(p.body_parameters for p in points), max(p.structures for p in points)
    where = f"measured at the largest corner of the grid, N = {n:,} parameters and D = {d:,} structures"
    if None in gains.corner.values():
        return f"The effect of a doubling of data or of parameters is not measured: no neighbouring runs ({where})."
    return f"Doubling {describe_both_doublings(gains)} ({where})."


def describe_both_doublings(gains: DoublingGains) -> str:
    data, model = gains.corner["D"], gains.corner["N"]
    assert data is not None and model is not None, "callers ask only where both have neighbours"
    first, second = ("lowers" if share >= 0 else "raises" for share in (data, model))
    again = "" if first == second else f"{second} it "
    by_data, by_model = format_percent(abs(data)), format_percent(abs(model))
    return (
        f"the data {first} the {TARGET_NAMES[gains.target]} by {by_data}, doubling the parameters {again}by {by_model}"
    )


def describe_other_targets(gains: list[DoublingGains]) -> str:
    parts = [describe_both_doublings(each) for each in gains if None not in each.corner.values()]
    return f"At the same corner, doubling {'; doubling '.join(parts)}." if parts else ""


def describe_average(gains: list[DoublingGains]) -> str:
    """Describe the average over the grid, which shows whether the corner is typical."""
    parts = [
        f"{TARGET_NAMES[each.target]} {format_percent(-each.mean['D'], sign=True)} and "
        f"{format_percent(-each.mean['N'], sign=True)}"
        for each in gains
        if each.difference is not None
    ]
    return f"Twice the data and twice the parameters, averaged over the grid: {'; '.join(parts)}." if parts else ""


def judge_data_claim(gains: list[DoublingGains], settings: ScalingSettings) -> str:
    """Judge for each target, by the interval of its mean difference, whether data scaling beats model scaling."""
    kinds = {kind: [each for each in gains if each.verdict == kind] for kind in ("data", "model", "open")}
    if len(kinds["data"]) == len(gains):
        verdict = "is supported within this grid"
    elif len(kinds["model"]) == len(gains):
        verdict = "is contradicted within this grid: model size helps more"
    elif len(kinds["open"]) == len(gains):
        verdict = "is neither supported nor contradicted by this grid"
    else:
        words = {"data": "supported", "model": "contradicted", "open": "open"}
        verdict = "is, within this grid, " + ", ".join(
            f"{words[kind]} for {join_names(TARGET_NAMES[each.target] for each in of_kind)}"
            for kind, of_kind in kinds.items()
            if of_kind
        )
    text = f"That data scaling beats model scaling (arXiv 2504.08112) {verdict}"
    if gains[0].difference is None:
        return text + "."
    (low, high), (more, less) = gains[0].difference, ("data", "parameters")
    if high < 0:
        (low, high), (more, less) = (-high, -low), (less, more)
    return (
        f"{text}. On average over the grid a doubling of {more} takes {100 * low:.1f} to {100 * high:.1f} percentage "
        f"points more off the {TARGET_NAMES[gains[0].target]} than one of {less} "
        f"({format_percent(settings.confidence)} interval)."
    ).replace(" -", " −")


def describe_basis(points: list[Point], grid: Grid, joint: FittedLaw) -> str:
    n, d = sorted({p.body_parameters for p in joint.points}), sorted({p.structures for p in joint.points})
    diverged = sorted(p.run for p in points if p.diverged)
    outside = len(points) - len(joint.points) - len(diverged)
    dropped = sum("of largest" in rule for rule in joint.entry.excluded.values())
    shared = [  # 0 or "" where the points do not give it
        grid.model,
        grid.depth and f"depth {grid.depth}",
        grid.epochs and f"{grid.epochs:g} epochs",
        name_seeds(joint.points),
    ]
    text = (
        f"The laws use {len(joint.points)} of {len(points)} runs: {len(n)} model sizes (N = {n[0]:,} to {n[-1]:,} body "
        f"parameters) by {len(d)} data sizes (D = {d[0]:,} to {d[-1]:,} unique structures), "
        f"{', '.join(fact for fact in shared if fact)}."
    )
    if outside:
        text += f" Outside the grid: {outside - dropped}; the table of runs says why." if outside > dropped else ""
        text += f" By the rule of the study, {dropped} of largest loss left out." if dropped else ""
    if diverged:
        text += (
            f" {len(diverged)} diverged and {'is' if len(diverged) == 1 else 'are'} in no law: {', '.join(diverged)}."
        )
    return text


def name_seeds(points: tuple[Point, ...]) -> str:
    seeds = [str(seed) for seed in sorted({p.seed for p in points})]
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {join_names(seeds)}"


def describe_other_units(points: tuple[Point, ...]) -> str:
    """Describe D in atoms and in labels: exponents stay the same as long as structures are of one size on average."""
    if not all(p.atoms and p.atoms_seen for p in points):
        return ""  # points of other people, which do not give it
    sizes = [p.atoms / p.structures for p in points]
    mean = sum(sizes) / len(sizes)
    most = max(abs(size / mean - 1) for size in sizes)
    atoms, seen = sorted(p.atoms for p in points), sorted(p.atoms_seen for p in points)
    labels = f", and {3 * seen[0]:,} to {3 * seen[-1]:,} force components seen, where all structures have forces"
    if not any(np.isfinite(p.force_mae) for p in points):
        labels = ""  # the data have energies alone
    within = f", to within {format_percent(most)}" if most > 5e-4 else ""
    return (
        f"In other units D is {atoms[0]:,} to {atoms[-1]:,} unique atoms{labels}; of {mean:.3g} atoms a structure{within}, "
        f"so that exponents hold for either and B for atoms is B × {mean:.3g}^β."
    )


# ---------------------------------------------------------------------------------------------------------- the laws
def judge_joint_law(joint: list[FittedLaw]) -> str:
    """Judge whether the sum of powers describes the points at all; without its floor or a term it cannot do better."""
    failing = [f for f in joint if f.entry.log_rms > MAX_RESIDUAL]
    rms = ", ".join(f"{TARGET_NAMES[f.entry.target]} {format_percent(f.entry.log_rms)}" for f in joint)
    law, most = "The separable law E + A/N^α + B/D^β", f"{100 * MAX_RESIDUAL:g} %"
    if not failing:
        return f"{law} describes the runs to within {most} (rms residuals: {rms})."
    names = "" if len(failing) == len(joint) else f" for {join_names(TARGET_NAMES[f.entry.target] for f in failing)}"
    return f"{law} does not hold{names}: rms residuals above {most} ({rms})."


def describe_steepening(joint: list[FittedLaw]) -> list[str]:
    """Describe curves that steepen: along a line, log of a sum of falling powers is convex in log D and can only flatten."""
    parts = []
    for f in joint:
        most = max(p.body_parameters for p in f.points)
        line = [p for p in average_seeds(f.points, f.entry.target) if p.body_parameters == most]
        line.sort(key=lambda p: p.structures)
        if f.entry.log_rms <= MAX_RESIDUAL or len(line) < 3:
            continue
        x, y = (np.log([getattr(p, name) for p in line]) for name in ("structures", f.entry.target))
        slopes = -np.diff(y) / np.diff(x)
        if slopes[-1] > slopes[0]:
            parts.append(f"{TARGET_NAMES[f.entry.target]} from {slopes[0]:.2f} to {slopes[-1]:.2f}")
    if not parts:
        return []
    return [
        "The curves steepen with more data, where any sum of powers can only flatten. Exponent between neighbouring "
        f"data sizes, largest model: {', '.join(parts)}."
    ]


def describe_nested_laws(nested: list[FittedLaw]) -> list[str]:
    """Describe the laws that the figures show where the joint one is not determined."""
    together = defaultdict(list)
    for f in nested:
        values = join_names(
            f"{GREEK_LETTERS[name]} = {format_estimate(f.entry.estimates[name])}" for name in f.law.exponents
        )
        together[format_formula(f)].append(
            f"{TARGET_NAMES[f.entry.target]}, {values}, rms residual {format_percent(f.entry.log_rms)}"
        )
    parts = "; ".join(f"{law} ({'; '.join(each)})" for law, each in together.items())
    return [f"The joint law not being determined, the figures show its best determined part: {parts}."] if parts else []


def format_formula(f: FittedLaw) -> str:
    return with_greek_letters(f.entry.formula)


def describe_exponents(f: FittedLaw, settings: ScalingSettings) -> str:
    if not f.entry.identified or f.replicas is None:
        return ""
    e = f.entry.estimates
    alpha, beta = (f.replicas[:, f.law.parameters.index(p)] for p in ("alpha", "beta"))
    low, high = central_interval(beta - alpha, settings.confidence)
    verdict = "data falls faster" if low > 0 else "model size falls faster" if high < 0 else "not distinguished"
    return (
        f"Exponents of the {TARGET_NAMES[f.entry.target]}: α = {format_estimate(e['alpha'])} for model size, "
        f"β = {format_estimate(e['beta'])} for data; β - α in [{low:+.2f}, {high:+.2f}]: {verdict}."
    )


def has_allocation(f: FittedLaw) -> bool:
    holds = f.entry.identified and f.entry.log_rms <= MAX_RESIDUAL
    return holds and f.replicas is not None and f.entry.allocation is not None


def describe_allocation(f: FittedLaw) -> str:
    """Describe N* ~ C^a with a = beta/(alpha + beta), if compute goes as N D."""
    if not has_allocation(f):
        return ""
    assert f.entry.allocation is not None, "a law with an allocation"
    a, (low, high) = f.entry.allocation.value, f.entry.allocation.interval
    cost = np.array([p.flops / (p.body_parameters * p.structures) for p in f.points])
    caveat = f"flops/(N D) varies by a factor {cost.max() / cost.min():.2f}" if cost.min() > 0 else "flops not recorded"
    return (
        f"For {TARGET_NAMES[f.entry.target]} the best split of compute C ~ N D within the grid is N ~ C^{a:.2f} [{low:.2f}, "
        f"{high:.2f}], D ~ C^{1 - a:.2f} ({caveat})."
    )


def describe_repeated_data(fitted: list[FittedLaw]) -> list[str]:
    """Describe what another epoch is worth, where the study has several numbers of epochs."""
    sentences = []
    for f in (f for f in fitted if f.entry.law == "DataConstrained"):
        epochs = sorted({p.epochs for p in f.points})
        if f.entry.identified:
            decay = format_estimate(f.entry.estimates["r_D"])
            result = f"show that the value of another epoch falls to a third over r_D = {decay} epochs"
        else:
            result = f"do not determine what another epoch is worth ({f.entry.notes[0]})"
        sentences.append(
            f"Repeated data, {TARGET_NAMES[f.entry.target]}: {len(f.points)} runs of {epochs[0]:g} to {epochs[-1]:g} epochs "
            f"{result}; rms residual {format_percent(f.entry.log_rms)}."
        )
    return sentences


def compare_joint_forms(joint: list[FittedLaw], fitted: list[FittedLaw]) -> list[str]:
    """Compare the joint forms by criteria and by their predictions; a difference in AICc below 2 counts as none."""
    targets = defaultdict(list)
    for f in joint:
        forms = [g.entry for g in fitted if g.entry.target == f.entry.target and g.entry.law in JOINT_FORMS]
        scores = [(g.law, g.aicc, g.held_out.worst) for g in forms if g.aicc is not None and g.held_out]
        if len(scores) > 1:
            targets[prefer_form(scores)].append(TARGET_NAMES[f.entry.target])
    parts = [f"{join_names(names)}: {text}" for text, names in targets.items()]
    return [f"Of the joint forms ({join_names(JOINT_FORMS.values())}), {'; '.join(parts)}."] if parts else []


def prefer_form(scores: list[tuple[str, float, float]]) -> str:
    """Name the forms that AICc prefers and the one that predicts best, from (law, AICc, worst error) of each."""
    least = min(aicc for _, aicc, _ in scores)
    preferred = list(dict.fromkeys(JOINT_FORMS[law] for law, aicc, _ in scores if aicc < least + 2))
    best, _, error = min(scores, key=lambda each: each[2])
    predicts = f"predicts the largest runs best, to {format_percent(error)}"
    also = f", which also {predicts}" if preferred == [JOINT_FORMS[best]] else f", and {JOINT_FORMS[best]} {predicts}"
    return f"AICc prefers {join_names(preferred)}{also}"


# ---------------------------------------------------------------------------------------------------------- the limits
def describe_extrapolation(joint: list[FittedLaw], fitted: list[FittedLaw]) -> str:
    """Describe how well the law predicts the largest runs from the others: the one extrapolation that can be tested."""
    points, chosen = joint[0].points, {f.entry.target: f for f in fitted if f.entry.chosen}
    n, d = max(p.body_parameters for p in points), max(p.structures for p in points)
    tried = [(f, f.entry.held_out) for f in (chosen.get(f.entry.target, f) for f in joint)]
    tries = [f"{format_percent(held.worst)} ({TARGET_NAMES[f.entry.target]})" for f, held in tried if held]
    text = f"Extrapolation beyond N = {n:,} or D = {d:,}."
    if tries:
        text += f" Fitted without the largest model and the largest data, the laws miss those runs by up to {join_names(tries)}."
    return text


def describe_undetermined(fitted: list[FittedLaw], joint: list[FittedLaw]) -> str:
    """Name the laws that the runs do not determine; of the parts of a law only those with a floor are named."""
    targets, together = defaultdict(list), defaultdict(list)
    for f in fitted:
        if not f.entry.identified and (f.entry.law == "Hoffmann" or (f.law.floor and "largest" in f.entry.where)):
            where = "" if f.entry.law == "Hoffmann" else f" at {f.entry.where.split(':')[0]}"
            targets[f"{format_formula(f)}{where}"].append(TARGET_NAMES[f.entry.target])
    for law, names in targets.items():
        together["every target" if len(names) == len(joint) else join_names(names)].append(law)
    parts = "; for ".join(f"{names} those of {join_names(laws)}" for names, laws in together.items())
    return f"Parameters that the runs do not determine: for {parts}. The table of laws says why." if parts else ""


def explain_no_allocation(joint: list[FittedLaw]) -> str:
    reasons = defaultdict(list)
    for f in joint:
        if not has_allocation(f):
            why = "not determined" if not f.entry.identified else "determined but does not hold"
            reasons[why].append(TARGET_NAMES[f.entry.target])
    parts = [
        f"{why}{'' if len(names) == len(joint) else f' for {join_names(names)}'}" for why, names in reasons.items()
    ]
    if not parts:
        return ""
    return f"A compute-optimal split of model and data: it follows from the joint law, which is {join_names(parts)}."


def explain_unique_data(grid: Grid, has_tradeoffs: bool) -> str:
    if not grid.epochs:
        return ""  # points of other people, which do not give it
    text = (
        f"An effect of unique data alone: every run of the grid makes {grid.epochs:g} epochs, so more data is also more "
        f"optimiser steps and more compute{', and no learning rate was tuned per run' * bool(grid.learning_rate)}"
    )
    return text + (". How much the steps alone bring is measured above for some sizes." if has_tradeoffs else ".")


def group_repeated_runs(points: list[Point]) -> list[list[Point]]:
    cells = defaultdict(list)
    for p in points:
        if not p.diverged:
            cells[p.model, p.width, p.depth, p.structures, p.epochs, p.learning_rate, p.subset].append(p)
    return [ps for ps in cells.values() if len({p.seed for p in ps}) > 1]


def describe_seeds(points: list[Point], targets: tuple[str, ...]) -> list[str]:
    repeated = group_repeated_runs(points)
    if not repeated:
        return []
    groups = {t: [[getattr(p, t) for p in ps] for ps in repeated] for t in targets}
    spreads = [
        f"{TARGET_NAMES[t]} {format_percent(max(np.std(v, ddof=1) / np.mean(v) for v in vs), 1)}"
        for t, vs in groups.items()
    ]
    runs = "1 run was" if len(repeated) == 1 else f"{len(repeated)} runs were"
    return [f"Seeds: {runs} repeated; the largest standard deviation among them is {join_names(spreads)}."]


def explain_one_seed(points: list[Point]) -> str:
    if group_repeated_runs(points):
        return ""
    return "The noise of training: every run has one seed. Intervals hold the scatter between runs, not between seeds."
