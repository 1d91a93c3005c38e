"""The second question of the report, whether width or depth is the better use of equal parameters."""

from __future__ import annotations

from collections import defaultdict

from gnnscale.report.questions.answer import Answer
from gnnscale.report.study_results import StudyResults
from gnnscale.scaling.comparisons.width_vs_depth import (
    PAPER_DEPTH,
    DepthLine,
    WidthDepthPair,
    describe_depth_line,
    describe_features,
    describe_smoothing,
    find_depth_lines,
    find_pairs,
)
from gnnscale.scaling.words import format_number, format_percent, join_names

NO_PAIR = "no two runs of different depth have nearly equal size"


def answer_width_or_depth(study: StudyResults) -> Answer:
    question = f"At equal parameters, width or depth past {PAPER_DEPTH} layers?"
    lines, pairs = find_depth_lines(study.points), find_pairs(study.points)
    if lines:
        lead = " ".join(map(state_verdict, group_by_model(lines)))
        evidence = [describe_depth_line(x, "loss") for x in lines] + [s for x in lines if (s := describe_features(x))]
        return Answer(question, lead, tuple(evidence), tuple(list_limits(lines)))
    if not pairs:
        return Answer(question, f"This study does not answer the question: {NO_PAIR}.")
    return answer_from_pairs(question, pairs)


def answer_from_pairs(question: str, pairs: list[WidthDepthPair]) -> Answer:
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
        lead if beyond else f"No pair has more than {PAPER_DEPTH} layers.",
        tuple(each),
        ("An interval, or the best depth: there are pairs only, and no series of depths.",),
    )


def group_by_model(lines: list[DepthLine]) -> list[list[DepthLine]]:
    found = defaultdict(list)
    for x in lines:
        found[x.model].append(x)
    return list(found.values())


def state_verdict(lines: list[DepthLine]) -> str:
    """State for one model over all its sizes: the better use of parameters, the best depths, and over-smoothing."""
    verdicts, model = {x.verdict for x in lines}, lines[0].model
    words = {"depth": "depth", "width": "width", "open": "no difference beyond the scatter of the seeds"}
    what = words[verdicts.pop()] if len(verdicts) == 1 else "it depends on the size"
    best = join_names(f"{x.best('loss')} at N ≈ {format_number(float(f'{x.size:.2g}'))}" for x in lines)
    trends = {describe_smoothing(x) for x in lines} - {"not measured"}
    smoothing = f", with {join_names(sorted(trends))}" if trends else ""
    return f"For {model}: {what}; the best depth is {best}{smoothing}."


def list_limits(lines: list[DepthLine]) -> list[str]:
    sentences = []
    if all(p.learning_rate for x in lines for runs in x.runs.values() for p in runs):
        sentences.append("Other learning rates for other depths: one rate was used for all depths of a model.")
    if min(x.seeds for x in lines) < 2:
        sentences.append("An interval: some depths have one seed only.")
    ends = [x.name for x in lines if x.best("loss") == max(x.runs)]
    if ends:
        sentences.append(
            f"The best depth of {join_names(ends)}: it is the deepest tried, so a larger one may be better."
        )
    if any(describe_smoothing(x) != "not measured" for x in lines):
        sentences.append(
            "Over-smoothing as the cause of a change in loss: both are measured, but nothing separates them."
        )
    return sentences
