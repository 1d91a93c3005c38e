"""The first question of the report, whether a factor of two is better spent on data or on parameters."""

from __future__ import annotations

import math

import numpy as np

from gnnscale.contract.scaling_results import Estimate, LawFit, Point
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

QUESTION = "Is a factor of two better spent on data or on parameters?"
AXIS_FIELDS = {"N": "body_parameters", "D": "structures"}
EXPONENT_NAMES = {"D": "beta", "N": "alpha"}
MIN_FRONTIER_RUNS = 4  # fewer runs on a frontier do not determine its slope


def answer_data_or_parameters(study: StudyResults) -> Answer:
    """Compare two doublings at the largest point, by the law if it is accurate, otherwise by neighbouring runs."""
    sizes = list_sizes(study)
    if min(map(len, sizes.values())) < 2:
        return decline_to_answer(study)
    n, d = sizes["N"][-1], sizes["D"][-1]
    law = study.chosen_law("loss")
    traded = data_vs_steps.describe_tradeoffs(
        data_vs_steps.find_tradeoffs(study.points, find_main_grid(study.points)), "loss"
    )
    if law and has_enough_sizes(sizes) and is_accurate(law) and has_both_sizes(law) and law.replicas:
        lead, limits = compare_by_law(law, n, d, study.fit.confidence), list_limits_of_law(law)
    else:
        lead, limits = compare_by_neighbours(study, n, d), [explain_missing_law(law)]
    evidence = [
        *describe_seeds(study),
        *list_exponents(study),
        *traded,
        *describe_compute(study),
        *contrasts.describe_growth(study.points),
    ]
    limits += [*describe_epoch_limit(study, bool(traded)), *describe_tuning_limit(study)]
    return Answer(QUESTION, lead, tuple(evidence), tuple(limits))


def list_sizes(study: StudyResults) -> dict[str, list[int]]:
    grid = study.grid_points()
    return {axis: sorted({getattr(p, field) for p in grid}) for axis, field in AXIS_FIELDS.items()}


def has_enough_sizes(sizes: dict[str, list[int]]) -> bool:
    return min(map(len, sizes.values())) >= MIN_SIZES


def has_both_sizes(law: LawFit) -> bool:
    return set(law.formula) >= {"N", "D"}


def decline_to_answer(study: StudyResults) -> Answer:
    why = "the runs have too few sizes of model and of data, all else equal"
    growth = contrasts.describe_growth(study.points)
    evidence = (*growth, *describe_compute(study)) if growth else ()
    return Answer(QUESTION, f"This study does not answer the question: {why}.", evidence)


# ------------------------------------------------------------------------------------------------------- by the law
def compare_by_law(law: LawFit, n: int, d: int, confidence: float) -> str:
    data, model, difference = predict_doublings(law, n, d, confidence)
    better = "Data" if difference[0] > 0 else "Parameters" if difference[1] < 0 else "Neither is shown to be better"
    return (
        f"{better}: at the largest point (N = {n:,}, D = {d:,}) twice the data lower the loss by {format_reduction(data)}, "
        f"twice the parameters by {format_reduction(model)}, by the law {with_greek_letters(law.formula)}, whose rms "
        f"residual is {format_percent(law.log_rms)}."
    )


def predict_doublings(law: LawFit, n: int, d: int, confidence: float) -> tuple[Estimate, Estimate, tuple[float, float]]:
    """Return the relative reductions by twice D and by twice N, and the interval of their difference.

    The intervals come from the resampled parameters of the law.
    """
    form, at = LAWS[law.law], {"D": (n, 2 * d), "N": (2 * n, d)}
    base = predict_target(law, np.array([n]), np.array([d]))[0, 0]
    values = {axis: 1 - predict_target(law, np.array([x]), np.array([y]))[0, 0] / base for axis, (x, y) in at.items()}
    rows = np.array(law.replicas)
    here = form(rows, N=np.array([n]), D=np.array([d]))[:, 0]
    sample = {axis: 1 - form(rows, N=np.array([x]), D=np.array([y]))[:, 0] / here for axis, (x, y) in at.items()}
    ends = {axis: interval_of(each, confidence) for axis, each in sample.items()}
    data, model = (Estimate(value=values[axis], low=ends[axis][0], high=ends[axis][1]) for axis in "DN")
    return data, model, interval_of(sample["D"] - sample["N"], confidence)


def format_reduction(e: Estimate) -> str:
    """Format a relative reduction of the loss: 12 % [10, 14]."""
    low, high = e.interval
    ends = f" [{100 * low:.1f}, {100 * high:.1f}]" if e.has_interval else ""
    return f"{format_percent(e.value, 1)}{ends}".replace("-", "−")


def list_limits_of_law(law: LawFit) -> list[str]:
    if not law.held_out or law.held_out.worst <= 2 * MAX_RESIDUAL:
        return []
    worst = format_percent(law.held_out.worst)
    return [f"Any larger point: fitted without the largest runs, the law misses them by up to {worst}."]


def explain_missing_law(law: LawFit | None) -> str:
    unknown = law is None or not has_both_sizes(law)
    why = (
        "no joint law is determined" if unknown else "too few sizes" if is_accurate(law) else "the law is not accurate"
    )
    return f"An interval from a law, or any larger point: {why}."


# ------------------------------------------------------------------------------------------------ by neighbouring runs
def compare_by_neighbours(study: StudyResults, n: int, d: int) -> str:
    measured = measure_doublings(study)
    by_data = [gains["D"] for gains in measured.values() if gains["D"] is not None]
    by_model = [gains["N"] for gains in measured.values() if gains["N"] is not None]
    at = f"at the largest point (N = {n:,}, D = {d:,})"
    if not by_data or not by_model:
        return f"Not known: {at} a neighbouring run is missing, and no law is accurate enough to replace it."
    data, model = sum(by_data) / len(by_data), sum(by_model) / len(by_model)
    agree = min(by_data) > max(by_model) or max(by_data) < min(by_model)
    if len(measured) == 1:
        better, seeds = "One seed does not show which is better", ""
    elif agree:
        better, seeds = "Data" if data > model else "Parameters", f", with every one of {len(measured)} seeds"
    else:
        better, seeds = "Seeds disagree on which is better", ""
    return (
        f"{better}: {at} twice the data lower the loss by {format_percent(data, 1)}, twice the parameters by "
        f"{format_percent(model, 1)}{seeds}, measured from the neighbouring runs."
    ).replace("-", "−")


def measure_doublings(study: StudyResults) -> dict[int, dict[str, float | None]]:
    """Return, for each seed, the relative reductions by a doubling, from the largest point to its smaller neighbours."""
    found = {}
    for seed in sorted({p.seed for p in study.grid_runs()}):
        runs = [p for p in study.grid_runs() if p.seed == seed]
        corner = max(runs, key=lambda p: (p.body_parameters, p.structures))
        largest = (max(p.body_parameters for p in runs), max(p.structures for p in runs))
        if (corner.body_parameters, corner.structures) == largest:
            found[seed] = {axis: gain_along(runs, "loss", corner, axis) for axis in "DN"}
    return found


def describe_seeds(study: StudyResults) -> list[str]:
    """Describe the doublings measured with each seed, and the scatter between seeds."""
    sentences = []
    each = [
        f"{format_percent(data, 1)} and {format_percent(model, 1)} with seed {seed}"
        for seed, gains in measure_doublings(study).items()
        if (data := gains["D"]) is not None and (model := gains["N"]) is not None
    ]
    if each:
        sentences.append(
            "From the smaller neighbours to the largest point, a doubling of data and one of parameters lower the loss "
            f"by {join_names(each)}.".replace("-", "−")
        )
    cells = group_repeated_runs(study.grid_runs())
    if cells:
        scatter = [math.log(p.loss) - math.log(runs[0].loss) for runs in cells for p in runs[1:]]
        spread = math.sqrt(sum(x * x for x in scatter) / (2 * len(scatter)))
        sentences.append(
            f"Between seeds of one run the loss scatters by {format_percent(spread, 1)} (standard deviation over "
            f"{len(cells)} runs of the grid)."
        )
    return sentences


# -------------------------------------------------------------------------------------------------- evidence and limits
def list_exponents(study: StudyResults) -> list[str]:
    """List the exponents of the selected law (or of the single-axis laws), each with the points it was fitted to."""
    return [describe_exponent(study, axis) for axis in EXPONENT_NAMES]


def describe_exponent(study: StudyResults, axis: str) -> str:
    selected, names = study.chosen_law("loss"), (f"Power{axis}", f"PurePower{axis}")
    alone = [law for law in study.fit.laws if law.target == "loss" and law.law in names]
    candidates = [law for law in [selected, *alone] if law and law.identified and axis in law.formula]
    sizes = sorted({getattr(p, AXIS_FIELDS[axis]) for p in study.grid_points()})
    where = f"{len(sizes)} sizes over a factor of {format_number(sizes[-1] / sizes[0])}"
    if not candidates:
        reasons = join_names(dict.fromkeys(note for law in alone for note in law.notes[:1]))
        return f"No exponent of {axis} is determined by {where}: {reasons or 'no law along this axis'}."
    law = candidates[0]
    exponent, floor = law.estimates.get(EXPONENT_NAMES[axis]) or law.estimates["gamma"], law.estimates.get("E")
    spot = "" if law is selected else f", at {law.where.split(':')[0]}"
    limit = f"down to a floor of {format_estimate(floor)}" if floor and floor.value else "without a visible floor"
    held_out = (
        f"; fitted without the largest points, it misses these by up to {format_percent(law.held_out.worst)}"
        if law.held_out
        else ""
    )
    return (
        f"The loss falls as a power of {axis} with exponent {format_estimate(exponent)}{spot}, {limit} ({where}; "
        f"{with_greek_letters(law.formula)}, rms residual {format_percent(law.log_rms)}{held_out})."
    )


def describe_compute(study: StudyResults) -> list[str]:
    """Describe the slopes of the measured frontiers, and the split of compute that follows from the joint law."""
    sentences, slopes = [], list_frontier_slopes(study)
    if slopes:
        sentences.append(f"Along the frontier of all runs the loss falls {join_names(slopes)}.")
    joint = study.joint_law("loss")
    if joint and joint.identified and joint.allocation and joint.log_rms <= MAX_RESIDUAL:
        a = joint.allocation
        sentences.append(
            f"The best N grows with exponent {format_estimate(a)} of C ~ N D, the best D with {1 - a.value:.3g}, by the "
            "joint law."
        )
    return sentences


def list_frontier_slopes(study: StudyResults) -> list[str]:
    points = [p for p in study.points if is_drawable(p) and p.flops > 0]
    slopes = []
    for unit, cost in list_costs(study, points).items():
        best = find_frontier(points, cost)
        if len(best) < MIN_FRONTIER_RUNS:
            continue
        slope = fit_growth(np.array([cost[p.run] for p in best]), np.array([p.loss for p in best])).exponent
        low, high = slope.interval
        if slope.has_interval and math.isfinite(low):
            falls = slope.model_copy(update={"value": -slope.value, "low": -high, "high": -low})
            slopes.append(f"with exponent {format_estimate(falls)} of C in {unit} ({len(best)} runs)")
    return slopes


def list_costs(study: StudyResults, points: list[Point]) -> dict[str, dict[str, float]]:
    """Return the cost of each run by unit: FLOP, and the seconds of processors if all runs have them."""
    costs = {"FLOP": {p.run: p.flops for p in points}}
    if points and all(study.spent.get(run_name(p.run)) for p in points):
        unit = "GPU-seconds (process-seconds where there are no GPUs)"
        costs[unit] = {p.run: study.spent[run_name(p.run)] for p in points}
    return costs


def describe_epoch_limit(study: StudyResults, traded: bool) -> list[str]:
    """Describe the limit of a fixed number of epochs; points without a number of epochs have none."""
    epochs = study.grid_points()[0].epochs
    if not epochs:
        return []
    text = f"The effect of data alone: every run of the grid makes {epochs:g} epochs, so more data are also more steps"
    return [text + ("; the effect of steps is measured above for some sizes." if traded else " and more compute.")]


def describe_tuning_limit(study: StudyResults) -> list[str]:
    rates = {p.learning_rate for p in study.grid_points()}  # 0: not known
    one_rate = len(rates) == 1 and all(rates)
    return ["The best result of each size: no learning rate was tuned for a run."] if one_rate else []
