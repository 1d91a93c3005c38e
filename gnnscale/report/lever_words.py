"""TODO: say what a reader finds here."""

from __future__ import annotations

from gnnscale.contract.results import LeverComparison, MeasuredStep
from gnnscale.report.html import render_table
from gnnscale.report.study_results import StudyResults
from gnnscale.scaling.words import format_number, format_percent

PAPER_TIME_AND_MEMORY = (
    1.33,
    0.27,
)  # arXiv 2504.08112, Table II: time and peak memory with checkpointing and ZeRO, over those without


def find_family(lever: MeasuredStep) -> str:
    if lever.runtime.edge_chunk is not None:
        return "chunks"
    return "layers" if lever.runtime.activation_checkpointing else "plain"


def memory_share(found: LeverComparison, lever: MeasuredStep) -> float:
    """Of the plain way's memory."""
    return lever.peak_bytes / found.ways[0].peak_bytes


def format_ranks(found: LeverComparison) -> str:
    return "one rank" if found.ranks == 1 else f"{found.ranks} ranks"


def format_cost(found: LeverComparison, lever: MeasuredStep) -> str:
    e = lever.relative
    time = f"{format_percent(e.value)} [{100 * e.low:.0f}, {100 * e.high:.0f}]"
    return f"{format_percent(memory_share(found, lever))} of its memory at {time} of its time"


def state_least_memory(found: LeverComparison) -> str:
    """The least memory of each family in single precision."""
    said = []
    for kind in ("chunks", "layers"):
        mine = [w for w in found.ways if find_family(w) == kind and w.precision == "fp32"]
        if mine:
            least = min(mine, key=lambda w: w.peak_bytes)
            said.append(f"with {least.name}, {format_cost(found, least)}")
    return f"Against the plain step, all that lives in memory included: {'; '.join(said)}."


def list_evidence(found: LeverComparison) -> list[str]:
    plain = found.ways[0]
    said = [
        f"Measured in turn on {format_ranks(found)}, {found.device}: a step of {found.structures} structures ({found.atoms:,} "
        f"atoms, {found.edges:,} edges) with {found.parameters:,} parameters ({found.model.describe()}). "
        f"Plain: {plain.peak_bytes / 2**30:.3g} GiB and {plain.seconds:.2g} s. "
        "Brackets: least and most of three turns."
    ]
    said += [f"With {w.name}: {format_cost(found, w)}." for w in found.ways if w.precision == "bf16"]
    apart = {p: max(abs(w.loss / plain.loss - 1) for w in found.ways if w.precision == p) for p in ("fp32", "bf16")}
    equal = f"within {format_number(apart['fp32'])}, relative" if apart["fp32"] else "to the last bit"
    said.append(
        f"After a step the losses of all ways in fp32 are equal {equal}; in bf16 it differs by {format_number(apart['bf16'])}."
    )
    said.append(
        f"arXiv 2504.08112 tells {format_percent(PAPER_TIME_AND_MEMORY[1])} of the memory at {format_percent(PAPER_TIME_AND_MEMORY[0])} of the time, with each layer "
        "checkpointed and ZeRO, on GPUs."
    )
    return said


def list_limits(found: LeverComparison) -> list[str]:
    said = ["Other networks, batches and machines: one of each was measured."]
    if found.ranks == 1:
        said.append("ZeRO: one rank has nobody to share with.")
    return said


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
    note = '<p class="note">One training step with and without each lever; the plain one is 100 %.</p>'
    return note + render_table(
        ["lever", "peak memory of a rank", "of plain", "a step", "of plain", "loss after a step"], cells
    )
