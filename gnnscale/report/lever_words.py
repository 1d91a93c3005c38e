"""Sentences and the table about memory levers: the memory that each saves and the time that it costs."""

from __future__ import annotations

from gnnscale.contract.results import LeverComparison, MeasuredStep
from gnnscale.report.html import render_table
from gnnscale.report.study_results import StudyResults
from gnnscale.scaling.words import format_number, format_percent

# arXiv 2504.08112, Table II: time and peak memory with checkpointing and ZeRO, over those without.
PAPER_TIME, PAPER_MEMORY = 1.33, 0.27


def find_family(lever: MeasuredStep) -> str:
    if lever.runtime.edge_chunk is not None:
        return "chunks"
    return "layers" if lever.runtime.activation_checkpointing else "plain"


def memory_share(found: LeverComparison, lever: MeasuredStep) -> float:
    """Return the peak memory relative to the plain step."""
    return lever.peak_bytes / found.ways[0].peak_bytes


def format_ranks(found: LeverComparison) -> str:
    return "one rank" if found.ranks == 1 else f"{found.ranks} ranks"


def format_cost(found: LeverComparison, lever: MeasuredStep) -> str:
    low, high = lever.relative.interval
    time = f"{format_percent(lever.relative.value)} [{100 * low:.0f}, {100 * high:.0f}]"
    return f"{format_percent(memory_share(found, lever))} of its memory at {time} of its time"


def state_least_memory(found: LeverComparison) -> str:
    """State the least memory of each family in single precision."""
    sentences = []
    for kind in ("chunks", "layers"):
        mine = [w for w in found.ways if find_family(w) == kind and w.precision == "fp32"]
        if mine:
            least = min(mine, key=lambda w: w.peak_bytes)
            sentences.append(f"with {least.name}, {format_cost(found, least)}")
    return f"Relative to the plain step, over everything in memory: {'; '.join(sentences)}."


def list_evidence(found: LeverComparison) -> list[str]:
    plain = found.ways[0]
    sentences = [
        f"Measured in turn on {format_ranks(found)}, {found.device}: a step of {found.structures} structures ({found.atoms:,} "
        f"atoms, {found.edges:,} edges) with {found.parameters:,} parameters ({found.model.describe()}). "
        f"Plain: {plain.peak_bytes / 2**30:.3g} GiB and {plain.seconds:.2g} s. "
        "Brackets: the smallest and largest of three turns."
    ]
    sentences += [f"With {w.name}: {format_cost(found, w)}." for w in found.ways if w.precision == "bf16"]
    apart = {p: max(abs(w.loss / plain.loss - 1) for w in found.ways if w.precision == p) for p in ("fp32", "bf16")}
    equal = f"within {format_number(apart['fp32'])}, relative" if apart["fp32"] else "to the last bit"
    sentences.append(
        f"After a step, the losses of all ways in fp32 are equal {equal}; in bf16 the loss differs by "
        f"{format_number(apart['bf16'])}."
    )
    sentences.append(
        f"arXiv 2504.08112 reports {format_percent(PAPER_MEMORY)} of the memory at {format_percent(PAPER_TIME)} of the "
        "time, with each layer checkpointed and ZeRO, on GPUs."
    )
    return sentences


def list_limits(found: LeverComparison) -> list[str]:
    sentences = ["Other networks, batches and machines: only one of each was measured."]
    if found.ranks == 1:
        sentences.append("ZeRO: it needs more than one rank.")
    return sentences


def render_levers(study: StudyResults) -> str:
    found = study.levers
    if found is None:
        return ""
    cells = [
        [
            w.name,
            f"{w.peak_bytes / 2**20:,.0f} MiB",
            format_percent(memory_share(found, w)),
            f"{w.seconds:.3g} s",
            format_percent(w.relative.value),
            f"{w.loss:.6f}",
        ]
        for w in found.ways
    ]
    note = '<p class="note">One training step with and without each lever; the plain step is 100 %.</p>'
    heads = ["lever", "peak memory of a rank", "of plain", "time of a step", "of plain", "loss after a step"]
    return note + render_table(heads, cells)
