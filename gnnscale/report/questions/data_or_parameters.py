"""TODO: say what a reader finds here."""

from __future__ import annotations

import math

import numpy as np

from gnnscale.contract.scaling_results import Estimate, LawFit
from gnnscale.report.figures.series import find_frontier, is_accurate, predict_target
from gnnscale.report.questions.answer import Answer
from gnnscale.report.study_results import StudyResults, is_drawable, run_name
from gnnscale.scaling.comparisons import contrasts, data_vs_steps
from gnnscale.scaling.comparisons.doublings import MIN_SIZES, gain_along
from gnnscale.scaling.comparisons.isoflop import fit_growth
from gnnscale.scaling.findings import group_repeated_runs, interval_of
from gnnscale.scaling.fitting.identifiability import MAX_RESIDUAL
from gnnscale.scaling.fitting.laws import LAWS
from gnnscale.scaling.grid import find_main_grid
from gnnscale.scaling.words import format_estimate, format_number, format_percent, join_names, with_greek_letters

MIN_FRONTIER_RUNS = 4  # runs on a frontier for a slope of it


def answer_data_or_parameters(study: StudyResults) -> Answer:
    """By what a factor of two buys at the largest point: from the law if it holds there, else as measured beside it."""
    question, grid = "Is a factor of two better spent on data or on parameters?", study.grid()
    sizes = {axis: sorted({getattr(p, name) for p in grid}) for axis, name in AXIS_FIELDS.items()}
    if not grid or min(map(len, sizes.values())) < 2:
        why = "the runs have too few sizes of model and of data, all else equal"
        grown = tuple(contrasts.describe_growth(study.points))
        return Answer(
            question, f"Not asked by this study: {why}.", (*grown, *describe_compute(study)) if grown else (), ()
        )
    n, d = sizes["N"][-1], sizes["D"][-1]
    law = study.chosen("loss")
    lawful = law and is_accurate(law) and set(law.formula) >= {"N", "D"} and min(map(len, sizes.values())) >= MIN_SIZES
    gains = predict_doublings(law, n, d, study.fit.confidence) if lawful else None
    traded = data_vs_steps.describe_tradeoffs(
        data_vs_steps.find_tradeoffs(study.points, find_main_grid(study.points)), "loss"
    )
    evidence = [
        *describe_seeds(study),
        *list_exponents(study),
        *traded,
        *describe_compute(study),
        *contrasts.describe_growth(study.points),
    ]
    unsupported = []
    if gains:
        data, model, difference = gains
        better = "Data" if difference[0] > 0 else "Parameters" if difference[1] < 0 else "Neither is told to be better"
        lead = (
            f"{better}: at the largest point (N = {n:,}, D = {d:,}) twice the data lower the loss by {format_reduction(data)}, twice the "
            f"parameters by {format_reduction(model)}, by the law {with_greek_letters(law.formula)}, which misses the runs by {format_percent(law.log_rms)}."
        )
        if law.held_out and law.held_out.worst > 2 * MAX_RESIDUAL:
            unsupported.append(
                f"Any larger point: without the largest runs the law misses them by up to {format_percent(law.held_out.worst)}."
            )
    else:
        lead = state_measured_doublings(study, n, d)
        unknown = law is None or not set(law.formula) >= {"N", "D"}
        why = (
            "no joint law is determined"
            if unknown
            else "too few sizes"
            if is_accurate(law)
            else "the law does not hold"
        )
        unsupported.append(f"An interval by a law, or any larger point: {why}.")
    return Answer(
        question,
        lead,
        tuple(evidence),
        (*unsupported, *describe_epoch_limit(study, bool(traded)), *describe_tuning_limit(study)),
    )


AXIS_FIELDS = {"N": "body_parameters", "D": "structures"}


def predict_doublings(
    law: LawFit, n: float, d: float, confidence: float
) -> tuple[Estimate, Estimate, tuple[float, float]] | None:
    """Shares that twice D and twice N take off the target, and the interval of their difference; resamples say how sure."""
    form, at = LAWS[law.law], {"D": (n, 2 * d), "N": (2 * n, d)}
    base = predict_target(law, np.array([n]), np.array([d]))[0, 0]
    values = {axis: 1 - predict_target(law, np.array([x]), np.array([y]))[0, 0] / base for axis, (x, y) in at.items()}
    if not law.replicas:
        return None
    rows = np.array(law.replicas)
    here = form(rows, N=np.array([n]), D=np.array([d]))[:, 0]
    sample = {axis: 1 - form(rows, N=np.array([x]), D=np.array([y]))[:, 0] / here for axis, (x, y) in at.items()}
    ends = {axis: interval_of(each, confidence) for axis, each in sample.items()}
    data, model = (Estimate(value=values[axis], low=ends[axis][0], high=ends[axis][1]) for axis in "DN")
    return data, model, interval_of(sample["D"] - sample["N"], confidence)


def format_reduction(e: Estimate) -> str:
    """A share of a falling loss: 12 % [10, 14]."""
    ends = "" if e.low is None else f" [{100 * e.low:.1f}, {100 * e.high:.1f}]"
    return f"{format_percent(e.value, 1)}{ends}".replace("-", "−")


def state_measured_doublings(study: StudyResults, n: int, d: int) -> str:
    shares = measure_doublings(study)
    found = {axis: [x[axis] for x in shares.values() if x[axis] is not None] for axis in "DN"}
    if not found["D"] or not found["N"]:
        return f"Not told: at the largest point (N = {n:,}, D = {d:,}) a neighbour is missing, and no law stands in."
    data, model = (sum(found[axis]) / len(found[axis]) for axis in "DN")
    apart = min(found["D"]) > max(found["N"]) or max(found["D"]) < min(found["N"])
    seeds = f", with every one of {len(shares)} seeds" if apart else ""
    better = ("Data" if data > model else "Parameters") if apart else "Seeds disagree on which is better"
    if len(shares) == 1:
        better, seeds = "One seed does not tell which is better", ""
    return (
        f"{better}: at the largest point (N = {n:,}, D = {d:,}) twice the data lower the loss by {format_percent(data, 1)}, twice the "
        f"parameters by {format_percent(model, 1)}{seeds}, measured from the neighbouring runs."
    ).replace("-", "−")


def measure_doublings(study: StudyResults) -> dict[int, dict[str, float | None]]:
    """Of each seed: what a doubling takes off the loss, from the largest point to its smaller neighbours."""
    found = {}
    for seed in sorted({p.seed for p in study.replicas()}):
        runs = [p for p in study.replicas() if p.seed == seed]
        corner = max(runs, key=lambda p: (p.body_parameters, p.structures))
        largest = (max(p.body_parameters for p in runs), max(p.structures for p in runs))
        if (corner.body_parameters, corner.structures) == largest:
            found[seed] = {axis: gain_along(runs, "loss", corner, axis) for axis in "DN"}
    return found


def describe_seeds(study: StudyResults) -> list[str]:
    """What doublings are with each seed, and the scatter between seeds, against which they are to be seen."""
    said, shares = [], measure_doublings(study)
    each = [
        f"{format_percent(x['D'], 1)} and {format_percent(x['N'], 1)} with seed {seed}"
        for seed, x in shares.items()
        if None not in x.values()
    ]
    if each:
        said.append(
            f"From the largest point to its smaller neighbours a doubling of data and one of parameters take off "
            f"{join_names(each)}.".replace("-", "−")
        )
    cells = group_repeated_runs(study.replicas())
    if cells:
        scatter = [math.log(p.loss) - math.log(runs[0].loss) for runs in cells for p in runs[1:]]
        spread = math.sqrt(sum(x * x for x in scatter) / (2 * len(scatter)))
        said.append(
            f"Seeds of one run scatter by {format_percent(spread, 1)} (standard deviation over {len(cells)} runs of the grid)."
        )
    return said


def list_exponents(study: StudyResults) -> list[str]:
    """Of the law that is gone by, or of those along one axis; each with what it was fitted to."""
    law, said = study.chosen("loss"), []
    for axis, name in (("D", "beta"), ("N", "alpha")):
        alone = [
            one for one in study.fit.laws if one.target == "loss" and one.law in (f"Power{axis}", f"PurePower{axis}")
        ]
        candidates = [one for one in [law, *alone] if one and one.identified and axis in one.formula]
        sizes = sorted({getattr(p, AXIS_FIELDS[axis]) for p in study.grid()})
        where = f"{len(sizes)} sizes over a factor of {format_number(sizes[-1] / sizes[0])}"
        if not candidates:
            why = join_names(dict.fromkeys(note for one in alone for note in one.notes[:1])) or "no law along this axis"
            said.append(f"No exponent of {axis} is determined by {where}: {why}.")
            continue
        one = candidates[0]
        e, floor = one.estimates.get(name) or one.estimates["gamma"], one.estimates.get("E")
        spot = "" if one is law else f", at {one.where.split(':')[0]}"
        low = f"down to a floor of {format_estimate(floor)}" if floor and floor.value else "with no floor in sight"
        text = f"The loss falls as a power of {axis} with exponent {format_estimate(e)}{spot}, {low} ({where}; {with_greek_letters(one.formula)}"
        text += f", rms residual {format_percent(one.log_rms)}"
        said.append(
            f"{text}; without the largest, these are foretold to {format_percent(one.held_out.worst)})."
            if one.held_out
            else f"{text})."
        )
    return said


def describe_compute(study: StudyResults) -> list[str]:
    """Slopes of both measured frontiers, and the split that follows from the joint law."""
    points = [p for p in study.points if is_drawable(p) and p.flops > 0]
    costs = {"FLOP": {p.run: p.flops for p in points}}
    if points and all(study.spent.get(run_name(p.run)) for p in points):
        costs["GPU-seconds (process-seconds where there are no GPUs)"] = {
            p.run: study.spent[run_name(p.run)] for p in points
        }
    slopes, said = [], []
    for unit, cost in costs.items():
        best = find_frontier(points, cost)
        if len(best) >= MIN_FRONTIER_RUNS:
            slope = fit_growth(np.array([cost[p.run] for p in best]), np.array([p.loss for p in best])).exponent
            if slope.low is not None and math.isfinite(slope.low):
                falls = slope.model_copy(update={"value": -slope.value, "low": -slope.high, "high": -slope.low})
                slopes.append(f"with exponent {format_estimate(falls)} of C in {unit} ({len(best)} runs)")
    if slopes:
        said.append(f"Along the frontier of all runs the loss falls {join_names(slopes)}.")
    joint = study.joint("loss")
    if joint and joint.identified and joint.allocation and joint.log_rms <= MAX_RESIDUAL:
        a = joint.allocation
        said.append(
            f"The best N grows with exponent {format_estimate(a)} of C ~ N D, the best D with {1 - a.value:.3g}, by the joint law."
        )
    return said


def describe_epoch_limit(study: StudyResults, traded: bool) -> list[str]:
    """The caveat of a fixed number of epochs; none for points that do not say how many."""
    epochs = study.grid()[0].epochs
    if not epochs:
        return []
    text = f"The worth of data by themselves: every run of the grid makes {epochs:g} epochs, so more data are also more steps"
    return [text + ("; how much that is, is measured above for some sizes." if traded else " and more compute.")]


def describe_tuning_limit(study: StudyResults) -> list[str]:
    rates = {p.learning_rate for p in study.grid()}  # 0: not known
    return ["The best of each size: no learning rate was tuned for a run."] if len(rates) == 1 and all(rates) else []
