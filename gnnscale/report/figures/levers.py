"""The figure of memory levers: the memory that each saves and the time that it costs."""

from __future__ import annotations

from gnnscale.report.figures.style import INK_COLOUR, OKABE_ITO, Figure, FuncFormatter, make_panels
from gnnscale.report.lever_words import PAPER_MEMORY, PAPER_TIME, find_family, format_ranks, memory_share
from gnnscale.report.study_results import StudyResults
from gnnscale.scaling.words import format_percent

FAMILY_COLOURS = {"plain": "#555555", "layers": OKABE_ITO[1], "chunks": OKABE_ITO[0]}


def draw_levers(study: StudyResults) -> tuple[Figure, str] | None:
    """Draw a row for each way to take the step: memory at the left, time at the right."""
    found = study.levers
    if found is None:
        return None
    names, at = [w.name for w in found.ways], range(len(found.ways))
    figure, (left, right) = make_panels(2, height=0.75 + 0.2 * len(names), sharey=True)
    colours = [FAMILY_COLOURS[find_family(w)] for w in found.ways]
    for ax, values, paper, words in (
        (
            left,
            [memory_share(found, w) for w in found.ways],
            PAPER_MEMORY,
            "peak memory of a rank, relative to the plain step",
        ),
        (
            right,
            [w.relative.value for w in found.ways],
            PAPER_TIME,
            "time of a step, relative to the plain one",
        ),
    ):
        ax.barh(at, values, height=0.62, color=colours, zorder=2)
        ax.axvline(paper, color=INK_COLOUR, linewidth=0.8, linestyle=(0, (3, 2)), zorder=3)
        for y, value in zip(at, values):
            ax.annotate(
                format_percent(value),
                (0, y),
                (4, -0.5),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
                zorder=4,
                color="white" if value > 0.12 else INK_COLOUR,
            )
        ax.set_xlim(0, 1.06 * max(paper, *values))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
        ax.set_xlabel(words)
    ends = [
        [w.relative.value - w.relative.interval[0] for w in found.ways],
        [w.relative.interval[1] - w.relative.value for w in found.ways],
    ]
    right.errorbar(
        [w.relative.value for w in found.ways], at, xerr=ends, fmt="none", ecolor=INK_COLOUR, elinewidth=0.8, zorder=3
    )
    right.set_xlim(0, 1.06 * max(PAPER_TIME, *(w.relative.interval[1] for w in found.ways)))
    left.set_yticks(at, names)
    left.invert_yaxis()
    for ax in (left, right):
        ax.tick_params(axis="y", length=0)
    return figure, (
        f"One training step of {found.parameters:,} parameters on {format_ranks(found)} with and without each lever; bars: the "
        "range of three turns. Dashed: checkpointing with ZeRO in arXiv 2504.08112."
    )
