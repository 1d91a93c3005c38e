"""What each lever for memory saves and costs, as the stage `levers` measured it: in words, as a figure, as a table."""

from __future__ import annotations

from gnnscale.contract.results import LeverComparison, MeasuredStep
from gnnscale.report.figures.style import INK, OKABE_ITO, Figure, FuncFormatter, panels
from gnnscale.report.html import table
from gnnscale.report.study_results import Study
from gnnscale.scaling.words import format_number, format_percent

PAPER = (1.33, 0.27)  # arXiv 2504.08112, Table II: time and peak memory with checkpointing and ZeRO, over those without
COLOURS = {"plain": "#555555", "layers": OKABE_ITO[1], "chunks": OKABE_ITO[0]}


def family(lever: MeasuredStep) -> str:
    if lever.runtime.edge_chunk is not None:
        return "chunks"
    return "layers" if lever.runtime.activation_checkpointing else "plain"


def share(found: LeverComparison, lever: MeasuredStep) -> float:
    """Of the plain way's memory."""
    return lever.peak_bytes / found.ways[0].peak_bytes


def on_ranks(found: LeverComparison) -> str:
    return "one rank" if found.ranks == 1 else f"{found.ranks} ranks"


def both(found: LeverComparison, lever: MeasuredStep) -> str:
    e = lever.relative
    time = f"{format_percent(e.value)} [{100 * e.low:.0f}, {100 * e.high:.0f}]"
    return f"{format_percent(share(found, lever))} of its memory at {time} of its time"


def lead(found: LeverComparison) -> str:
    """The least memory of each family in single precision."""
    said = []
    for kind in ("chunks", "layers"):
        mine = [w for w in found.ways if family(w) == kind and w.precision == "fp32"]
        if mine:
            least = min(mine, key=lambda w: w.peak_bytes)
            said.append(f"with {least.name}, {both(found, least)}")
    return f"Against the plain step, all that lives in memory included: {'; '.join(said)}."


def evidence(found: LeverComparison) -> list[str]:
    plain, model = found.ways[0], found.model
    said = [
        f"Measured in turn on {on_ranks(found)}, {found.device}: a step of {found.structures} structures ({found.atoms:,} "
        f"atoms, {found.edges:,} edges) with {found.parameters:,} parameters ({found.model.describe()}). "
        f"Plain: {plain.peak_bytes / 2**30:.3g} GiB and {plain.seconds:.2g} s. "
        "Brackets: least and most of three turns."
    ]
    said += [f"With {w.name}: {both(found, w)}." for w in found.ways if w.precision == "bf16"]
    apart = {p: max(abs(w.loss / plain.loss - 1) for w in found.ways if w.precision == p) for p in ("fp32", "bf16")}
    equal = f"within {format_number(apart['fp32'])}, relative" if apart["fp32"] else "to the last bit"
    said.append(
        f"After a step the losses of all ways in fp32 are equal {equal}; in bf16 it differs by {format_number(apart['bf16'])}."
    )
    said.append(
        f"arXiv 2504.08112 tells {format_percent(PAPER[1])} of the memory at {format_percent(PAPER[0])} of the time, with each layer "
        "checkpointed and ZeRO, on GPUs."
    )
    return said


def unsupported(found: LeverComparison) -> list[str]:
    said = ["Other networks, batches and machines: one of each was measured."]
    if found.ranks == 1:
        said.append("ZeRO: one rank has nobody to share with.")
    return said


def rows(study: Study) -> str:
    found = study.levers
    if found is None:
        return ""
    cells = [
        [
            w.name,
            f"{w.peak_bytes / 2**20:,.0f} MiB",
            format_percent(share(found, w)),
            f"{w.seconds:.3g} s",
            format_percent(w.relative.value),
            f"{w.loss:.6f}",
        ]
        for w in found.ways
    ]
    note = '<p class="note">One training step with and without each lever; the plain one is 100 %.</p>'
    return note + table(
        ["lever", "peak memory of a rank", "of plain", "a step", "of plain", "loss after a step"], cells
    )


def levers(study: Study) -> tuple[Figure, str] | None:
    """A row for each way: memory at the left, time at the right."""
    found = study.levers
    if found is None:
        return None
    names, at = [w.name for w in found.ways], range(len(found.ways))
    figure, (left, right) = panels(2, height=0.75 + 0.2 * len(names), sharey=True)
    colours = [COLOURS[family(w)] for w in found.ways]
    for ax, values, paper, words in (
        (left, [share(found, w) for w in found.ways], PAPER[1], "peak memory of a rank, of the plain step's"),
        (right, [w.relative.value for w in found.ways], PAPER[0], "time of a step, of the plain one's"),
    ):
        ax.barh(at, values, height=0.62, color=colours, zorder=2)
        ax.axvline(paper, color=INK, linewidth=0.8, linestyle=(0, (3, 2)), zorder=3)
        for y, value in zip(at, values):
            ax.annotate(
                format_percent(value),
                (0, y),
                (4, -0.5),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
                zorder=4,
                color="white" if value > 0.12 else INK,
            )
        ax.set_xlim(0, 1.06 * max(paper, *values))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
        ax.set_xlabel(words)
    ends = [
        [w.relative.value - w.relative.low for w in found.ways],
        [w.relative.high - w.relative.value for w in found.ways],
    ]
    right.errorbar(
        [w.relative.value for w in found.ways], at, xerr=ends, fmt="none", ecolor=INK, elinewidth=0.8, zorder=3
    )
    right.set_xlim(0, 1.06 * max(PAPER[0], *(w.relative.high for w in found.ways)))
    left.set_yticks(at, names)
    left.invert_yaxis()
    for ax in (left, right):
        ax.tick_params(axis="y", length=0)
    return figure, (
        f"One training step of {found.parameters:,} parameters on {on_ranks(found)} with and without each lever; lines: the "
        "range of three turns. Dashed: what arXiv 2504.08112 tells of checkpointing with ZeRO."
    )
