"""The three questions of arXiv 2504.08112, each answered in words with the evidence beside it, and what the evidence does
not support; and the laws that were weighed against each other."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from gnnscale.contract.scaling_results import Estimate, LawFit
from gnnscale.contract.stage_spec import Runtime
from gnnscale.report.figures import levers
from gnnscale.report.figures.series import envelope, holds, predicted
from gnnscale.report.html import table
from gnnscale.report.study_results import Study, short, sound
from gnnscale.scaling.comparisons import contrasts, data_vs_steps
from gnnscale.scaling.comparisons.doublings import MIN_SIZES, gain_along
from gnnscale.scaling.comparisons.isoflop import fit_growth
from gnnscale.scaling.comparisons.width_vs_depth import (
    PAPER_DEPTH,
    DepthLine,
    find_depth_lines,
    find_pairs,
    describe_features,
    said_line,
    describe_smoothing,
)
from gnnscale.scaling.findings import group_repeated_runs, interval_of
from gnnscale.scaling.fitting.identifiability import MAX_RESIDUAL
from gnnscale.scaling.fitting.laws import LAWS
from gnnscale.scaling.grid import find_main_grid
from gnnscale.scaling.words import format_estimate, format_number, format_percent, join_names, with_greek_letters

LEAST = 4  # runs on a frontier for a slope of it


class Answer(NamedTuple):
    question: str
    answer: str
    evidence: tuple[str, ...]
    unsupported: tuple[str, ...]


def answers(study: Study) -> list[Answer]:
    if not any(map(sound, study.points)):
        return []
    return [data_or_parameters(study), width_or_depth(study), memory(study)]


# --------------------------------------------------------------------------------------------------- data or parameters
def data_or_parameters(study: Study) -> Answer:
    """By what a factor of two buys at the largest point: from the law if it holds there, else as measured beside it."""
    question, grid = "Is a factor of two better spent on data or on parameters?", study.grid()
    sizes = {axis: sorted({getattr(p, name) for p in grid}) for axis, name in AXES.items()}
    if not grid or min(map(len, sizes.values())) < 2:
        why = "the runs have too few sizes of model and of data, all else equal"
        grown = tuple(contrasts.describe_growth(study.points))
        return Answer(question, f"Not asked by this study: {why}.", (*grown, *compute(study)) if grown else (), ())
    n, d = sizes["N"][-1], sizes["D"][-1]
    law = study.chosen("loss")
    lawful = law and holds(law) and set(law.formula) >= {"N", "D"} and min(map(len, sizes.values())) >= MIN_SIZES
    gains = doubling(law, n, d, study.fit.confidence) if lawful else None
    traded = data_vs_steps.describe_tradeoffs(data_vs_steps.find_tradeoffs(study.points, find_main_grid(study.points)), "loss")
    evidence = [*by_seed(study), *exponents(study), *traded, *compute(study), *contrasts.describe_growth(study.points)]
    unsupported = []
    if gains:
        data, model, difference = gains
        better = "Data" if difference[0] > 0 else "Parameters" if difference[1] < 0 else "Neither is told to be better"
        lead = (
            f"{better}: at the largest point (N = {n:,}, D = {d:,}) twice the data lower the loss by {portion(data)}, twice the "
            f"parameters by {portion(model)}, by the law {with_greek_letters(law.formula)}, which misses the runs by {format_percent(law.log_rms)}."
        )
        if law.held_out and law.held_out.worst > 2 * MAX_RESIDUAL:
            unsupported.append(
                f"Any larger point: without the largest runs the law misses them by up to {format_percent(law.held_out.worst)}."
            )
    else:
        lead = measured_lead(study, n, d)
        unknown = law is None or not set(law.formula) >= {"N", "D"}
        why = "no joint law is determined" if unknown else "too few sizes" if holds(law) else "the law does not hold"
        unsupported.append(f"An interval by a law, or any larger point: {why}.")
    return Answer(question, lead, tuple(evidence), (*unsupported, *steps_or_data(study, bool(traded)), *untuned(study)))


AXES = {"N": "body_parameters", "D": "structures"}


def doubling(
    law: LawFit, n: float, d: float, confidence: float
) -> tuple[Estimate, Estimate, tuple[float, float]] | None:
    """Shares that twice D and twice N take off the target, and the interval of their difference; resamples say how sure."""
    form, at = LAWS[law.law], {"D": (n, 2 * d), "N": (2 * n, d)}
    base = predicted(law, np.array([n]), np.array([d]))[0, 0]
    values = {axis: 1 - predicted(law, np.array([x]), np.array([y]))[0, 0] / base for axis, (x, y) in at.items()}
    if not law.replicas:
        return None
    rows = np.array(law.replicas)
    here = form(rows, N=np.array([n]), D=np.array([d]))[:, 0]
    sample = {axis: 1 - form(rows, N=np.array([x]), D=np.array([y]))[:, 0] / here for axis, (x, y) in at.items()}
    ends = {axis: interval_of(each, confidence) for axis, each in sample.items()}
    data, model = (Estimate(value=values[axis], low=ends[axis][0], high=ends[axis][1]) for axis in "DN")
    return data, model, interval_of(sample["D"] - sample["N"], confidence)


def portion(e: Estimate) -> str:
    """A share of a falling loss: 12 % [10, 14]."""
    ends = "" if e.low is None else f" [{100 * e.low:.1f}, {100 * e.high:.1f}]"
    return f"{format_percent(e.value, 1)}{ends}".replace("-", "−")


def measured_lead(study: Study, n: int, d: int) -> str:
    shares = measured_doublings(study)
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


def measured_doublings(study: Study) -> dict[int, dict[str, float | None]]:
    """Of each seed: what a doubling takes off the loss, from the largest point to its smaller neighbours."""
    found = {}
    for seed in sorted({p.seed for p in study.replicas()}):
        runs = [p for p in study.replicas() if p.seed == seed]
        corner = max(runs, key=lambda p: (p.body_parameters, p.structures))
        largest = (max(p.body_parameters for p in runs), max(p.structures for p in runs))
        if (corner.body_parameters, corner.structures) == largest:
            found[seed] = {axis: gain_along(runs, "loss", corner, axis) for axis in "DN"}
    return found


def by_seed(study: Study) -> list[str]:
    """What doublings are with each seed, and the scatter between seeds, against which they are to be seen."""
    said, shares = [], measured_doublings(study)
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


def exponents(study: Study) -> list[str]:
    """Of the law that is gone by, or of those along one axis; each with what it was fitted to."""
    law, said = study.chosen("loss"), []
    for axis, name in (("D", "beta"), ("N", "alpha")):
        alone = [
            one for one in study.fit.laws if one.target == "loss" and one.law in (f"Power{axis}", f"PurePower{axis}")
        ]
        candidates = [one for one in [law, *alone] if one and one.identified and axis in one.formula]
        sizes = sorted({getattr(p, AXES[axis]) for p in study.grid()})
        where = f"{len(sizes)} sizes over a factor of {format_number(sizes[-1] / sizes[0])}"
        if not candidates:
            why = join_names(dict.fromkeys(note for one in alone for note in one.notes[:1])) or "no law along this axis"
            said.append(f"No exponent of {axis} is determined by {where}: {why}.")
            continue
        one = candidates[0]
        e, floor = one.estimates.get(name) or one.estimates["gamma"], one.estimates.get("E")
        spot = "" if one is law else f", at {one.where.split(':')[0]}"
        low = f"down to a floor of {format_estimate(floor)}" if floor and floor.value else "with no floor in sight"
        text = (
            f"The loss falls as a power of {axis} with exponent {format_estimate(e)}{spot}, {low} ({where}; {with_greek_letters(one.formula)}"
        )
        text += f", rms residual {format_percent(one.log_rms)}"
        said.append(
            f"{text}; without the largest, these are foretold to {format_percent(one.held_out.worst)})."
            if one.held_out
            else f"{text})."
        )
    return said


def compute(study: Study) -> list[str]:
    """Slopes of both measured frontiers, and the split that follows from the joint law."""
    points = [p for p in study.points if sound(p) and p.flops > 0]
    costs = {"FLOP": {p.run: p.flops for p in points}}
    if points and all(study.spent.get(short(p.run)) for p in points):
        costs["GPU-seconds (process-seconds where there are no GPUs)"] = {
            p.run: study.spent[short(p.run)] for p in points
        }
    slopes, said = [], []
    for unit, cost in costs.items():
        best = envelope(points, cost)
        if len(best) >= LEAST:
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


def steps_or_data(study: Study, traded: bool) -> list[str]:
    """The caveat of a fixed number of epochs; none for points that do not say how many."""
    epochs = study.grid()[0].epochs
    if not epochs:
        return []
    text = f"The worth of data by themselves: every run of the grid makes {epochs:g} epochs, so more data are also more steps"
    return [text + ("; how much that is, is measured above for some sizes." if traded else " and more compute.")]


def untuned(study: Study) -> list[str]:
    rates = {p.learning_rate for p in study.grid()}  # 0: not known
    return ["The best of each size: no learning rate was tuned for a run."] if len(rates) == 1 and all(rates) else []


# -------------------------------------------------------------------------------------------------------- width or depth
def width_or_depth(study: Study) -> Answer:
    question = f"At equal parameters, width or depth past {PAPER_DEPTH} layers?"
    lines, pairs = find_depth_lines(study.points), find_pairs(study.points)
    if lines:
        lead = " ".join(map(decided, by_model(lines)))
        evidence = [said_line(x, "loss") for x in lines] + [s for x in lines if (s := describe_features(x))]
        return Answer(question, lead, tuple(evidence), tuple(doubtful(lines)))
    if not pairs:
        return Answer(
            question, "Not asked by this study: no two runs of different depth are of nearly equal size.", (), ()
        )
    beyond = [x for x in pairs if x.wide.depth >= PAPER_DEPTH]
    deep = sum(x.gain("loss") > 0 for x in beyond)
    lead = f"The deeper network has the lower loss in {deep} of {len(beyond)} pairs of nearly equal size."
    each = [
        f"Depth {x.deep.depth} against {x.wide.depth} at N ≈ {x.wide.body_parameters:,}, D = {x.deep.structures:,}: loss "
        f"{format_percent(-x.gain('loss'), 1, sign=True)}."
        for x in pairs
    ]
    return Answer(
        question,
        lead if beyond else f"No pair is past {PAPER_DEPTH} layers.",
        tuple(each),
        ("An interval, or which depth is best: there are pairs and no line of depths.",),
    )


def by_model(lines: list[DepthLine]) -> list[list[DepthLine]]:
    found = defaultdict(list)
    for x in lines:
        found[x.model].append(x)
    return list(found.values())


def decided(lines: list[DepthLine]) -> str:
    """Of one model, all its sizes: which is the better use, the best depths, and whether features become alike."""
    verdicts, model = {x.verdict for x in lines}, lines[0].model
    words = {"depth": "depth", "width": "width", "open": "no difference that the seeds would let through"}
    what = words[verdicts.pop()] if len(verdicts) == 1 else "it depends on the size"
    best = join_names(f"{x.best('loss')} at N ≈ {format_number(float(f'{x.size:.2g}'))}" for x in lines)
    trends = {describe_smoothing(x) for x in lines} - {"not measured"}
    return f"For {model}: {what}; the best depth is {best}" + (f", with {join_names(sorted(trends))}." if trends else ".")


def doubtful(lines: list[DepthLine]) -> list[str]:
    said = []
    if all(p.learning_rate for x in lines for runs in x.runs.values() for p in runs):
        said.append("Another learning rate for other depths: one was used for all of a form.")
    if min(x.seeds for x in lines) < 2:
        said.append("An interval: some depths were run with one seed.")
    ends = [x.name for x in lines if x.best("loss") == max(x.runs)]
    if ends:
        said.append(f"The best depth of {join_names(ends)}: it is the deepest tried.")
    if any(describe_smoothing(x) != "not measured" for x in lines):
        said.append("That over-smoothing causes what the loss does: the two are measured side by side.")
    return said


# --------------------------------------------------------------------------------------------------------------- memory
def memory(study: Study) -> Answer:
    """What was measured side by side; and what the trainings used, which differ in more than that."""
    question, found = "What do the techniques for memory bring?", study.levers
    answer = used_by_trainings(study, question)
    if found is None:
        return answer
    trained = (answer.answer, *answer.evidence) if study.runtimes else ()
    return Answer(question, levers.lead(found), (*levers.evidence(found), *trained), tuple(levers.unsupported(found)))


def used_by_trainings(study: Study, question: str) -> Answer:
    rows = techniques(study)
    if not rows:
        return Answer(question, "Not recorded in these points.", (), ())
    used = [f"{name} in {len(runs)} of {len(study.runtimes)} trainings" for name, runs in rows.items() if name]
    plain = "No training of this study used any: all fitted into memory without."
    lead = f"This study used {join_names(used)}." if used else plain
    evidence = []
    for name, runs in rows.items():
        done = [r for run in runs if (r := study.results.get(f"train/{run}"))]
        if done:
            peak, n = (
                [r.peak_bytes / 2**30 for r in done],
                [p.body_parameters for p in study.points if short(p.run) in runs],
            )
            sizes = f", N up to {max(n):,}" if n else ""
            seconds, text = sum(r.seconds for r in done), f"{name[:1].upper()}{name[1:]}" if name else "None"
            evidence.append(
                f"{text}: {len(done)} trainings{sizes}; peak memory of a rank {min(peak):.2f} to "
                f"{max(peak):.2f} GiB, all included; {seconds:,.0f} s in all."
            )
    return Answer(
        question,
        lead,
        tuple(evidence),
        (
            "What each technique saves or costs: no step was taken both with and without; `levers:` in the study's file asks "
            "for that.",
        ),
    )


def techniques(study: Study) -> dict[str, list[str]]:
    """Runs by what they used, "" for nothing; in the order of how many."""
    found = defaultdict(list)
    for run, runtime in sorted(study.runtimes.items()):
        found[named(runtime)].append(run)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def named(runtime: Runtime) -> str:
    return " with ".join(
        name
        for name, used in (
            (f"edges in chunks of {runtime.edge_chunk or 0:,}", runtime.edge_chunk is not None),
            ("activation checkpointing", runtime.activation_checkpointing),
            (f"ZeRO {runtime.zero_stage} over {runtime.ranks} ranks", runtime.zero_stage > 0),
            (f"micro-batches of {runtime.micro_batch_edges or 0:,} edges", runtime.micro_batch_edges is not None),
        )
        if used
    )


# ----------------------------------------------------------------------------------------------------------------- page
def section_of(asked: list[Answer], prose: Callable[[str], str]) -> str:
    """Each question with its answer, the evidence, and what it does not support; `prose` turns sentences into HTML."""
    parts = []
    for a in asked:
        parts.append(f'<h3>{prose(a.question)}</h3><p class="answer">{prose(a.answer)}</p>')
        if a.evidence:
            parts.append(f"<ul>{''.join(f'<li>{prose(s)}</li>' for s in a.evidence)}</ul>")
        if a.unsupported:
            items = "".join(f"<li>{prose(s)}</li>" for s in a.unsupported)
            parts.append(
                f'<div class="limits"><p class="note">Not supported by this evidence:</p><ul>{items}</ul></div>'
            )
    return "".join(parts)


def compared(laws: Iterable[LawFit]) -> str:
    """One row a law: on the same points, so that the criteria can be compared."""

    def plain(value: float | None) -> str:
        return "–" if value is None else f"{value:,.1f}"

    rows = []
    for law in laws:
        held = [format_percent(law.held_out.mean), format_percent(law.held_out.worst)] if law.held_out else ["–", "–"]
        rows.append(
            [law.law, format_percent(law.log_rms), plain(law.aicc), plain(law.bic), *held, "yes" if law.identified else "no"]
        )
    heads = ["law", "rms residual", "AICc", "BIC", "largest points missed by, mean", "at worst", "determined"]
    return table(heads, rows)
