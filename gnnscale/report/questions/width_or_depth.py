"""TODO: say what a reader finds here."""

from __future__ import annotations

from collections import defaultdict

from gnnscale.report.questions.answer import Answer
from gnnscale.report.study_results import StudyResults
from gnnscale.scaling.comparisons.width_vs_depth import (
    PAPER_DEPTH,
    DepthLine,
    describe_features,
    describe_smoothing,
    find_depth_lines,
    find_pairs,
    said_line,
)
from gnnscale.scaling.words import format_number, format_percent, join_names


def answer_width_or_depth(study: StudyResults) -> Answer:
    question = f"At equal parameters, width or depth past {PAPER_DEPTH} layers?"
    lines, pairs = find_depth_lines(study.points), find_pairs(study.points)
    if lines:
        lead = " ".join(map(state_verdict, group_by_model(lines)))
        evidence = [said_line(x, "loss") for x in lines] + [s for x in lines if (s := describe_features(x))]
        return Answer(question, lead, tuple(evidence), tuple(list_limits(lines)))
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


def group_by_model(lines: list[DepthLine]) -> list[list[DepthLine]]:
    found = defaultdict(list)
    for x in lines:
        found[x.model].append(x)
    return list(found.values())


def state_verdict(lines: list[DepthLine]) -> str:
    """Of one model, all its sizes: which is the better use, the best depths, and whether features become alike."""
    verdicts, model = {x.verdict for x in lines}, lines[0].model
    words = {"depth": "depth", "width": "width", "open": "no difference that the seeds would let through"}
    what = words[verdicts.pop()] if len(verdicts) == 1 else "it depends on the size"
    best = join_names(f"{x.best('loss')} at N ≈ {format_number(float(f'{x.size:.2g}'))}" for x in lines)
    trends = {describe_smoothing(x) for x in lines} - {"not measured"}
    return f"For {model}: {what}; the best depth is {best}" + (
        f", with {join_names(sorted(trends))}." if trends else "."
    )


def list_limits(lines: list[DepthLine]) -> list[str]:
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
