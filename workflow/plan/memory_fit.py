"""Chooses the memory levers with which a training fits into the memory of a rank, or the reason why none is enough. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gnnscale.architectures.memory import Memory, peak_bytes
from gnnscale.contract.settings import LeverSettings, TrainSettings
from gnnscale.contract.stage_spec import Runtime
from workflow.config.site import SiteConfig

LIBRARY_BYTES = 0.7e9  # of a rank with Python, torch and DeepSpeed loaded, without data
LARGEST_OVER_MEAN_BATCH = 1.6  # batches are drawn at random: the largest of a run, as seen with five mixed sources


class MemoryFit(NamedTuple):
    """The first choice of memory levers that fits, or the last one tried, with the reason why it does not fit."""

    runtime: Runtime
    memory: Memory
    description: str  # of the levers; "" = none
    refusal: str  # "" = it fits


def choose_levers(
    settings: TrainSettings, sources: int, atoms: float, edges: float, site: SiteConfig, ranks: int | None = None
) -> MemoryFit:
    """Choose the cheapest levers that fit; `atoms` and `edges` are those of a mean structure."""
    optim, room = settings.optim, site.rank_bytes - LIBRARY_BYTES
    batch = LARGEST_OVER_MEAN_BATCH * optim.batch

    def peak(runtime: Runtime) -> Memory:
        whole = batch / runtime.ranks
        part = min(1.0, runtime.micro_batch_edges / (whole * edges)) if runtime.micro_batch_edges else 1.0
        return peak_bytes(
            settings.model,
            part * whole * atoms,
            part * whole * edges,
            runtime.memory_levers,
            optim.precision,
            runtime.ranks,
            sources,
            ema=bool(optim.ema),
        )

    for runtime, description in list_candidates(settings, site, batch * edges, ranks or site.launch.ranks):
        memory = peak(runtime)
        if memory.peak <= room:
            return MemoryFit(runtime, memory, description, "")
    return MemoryFit(runtime, memory, description, describe_refusal(memory, site))


def describe_refusal(memory: Memory, site: SiteConfig) -> str:
    static = memory.parameters + memory.optimiser + memory.gradients
    return (
        f"needs {format_gigabytes(memory.peak + LIBRARY_BYTES)} at its fullest with every lever "
        f"({format_gigabytes(static)} of it weights, gradients and moments), but a rank here has "
        f"{format_gigabytes(site.rank_bytes)}; choose a smaller width, or a site with more memory"
    )


def fit_lever_comparison(
    settings: LeverSettings, sources: int, atoms: float, edges: float, site: SiteConfig, ranks: int
) -> MemoryFit:
    """Return the fit of a step without levers, with which others are compared, and the chunk of a training."""
    train = TrainSettings(model=settings.model)
    plain, share = Runtime(ranks=ranks, threads=site.launch.threads_per_rank), settings.batch / ranks
    memory = peak_bytes(settings.model, share * atoms, share * edges, plain.memory_levers, ranks=ranks, sources=sources)
    runtime = plain.model_copy(update={"edge_chunk": edges_per_chunk(train, site.node.gpus is not None)})
    needed, refusal = memory.peak + LIBRARY_BYTES, ""
    if needed > site.rank_bytes:
        refusal = (
            f"the plain step of `levers` needs {format_gigabytes(needed)}, but a rank here has "
            f"{format_gigabytes(site.rank_bytes)}; choose a smaller levers.batch or width"
        )
    return MemoryFit(runtime, memory, "", refusal)


def list_candidates(
    settings: TrainSettings, site: SiteConfig, edges: float, ranks: int
) -> Iterator[tuple[Runtime, str]]:
    """Yield choices and their descriptions, from no lever to all; each saves more memory and costs more time."""
    plain = Runtime(ranks=ranks, threads=site.launch.threads_per_rank)
    yield plain, ""
    chunk = edges_per_chunk(settings, site.node.gpus is not None)
    chunked = plain.model_copy(update={"edge_chunk": chunk})
    words = f"edges {chunk} at a time, " if chunk else ""
    if chunk:
        yield chunked, f"edges {chunk} at a time"
    for parts in (4, 16):
        budget = max(1, int(edges / plain.ranks / parts))
        micro = chunked.model_copy(update={"micro_batch_edges": budget})
        yield micro, f"{words}micro-batches of {budget:,} edges"
    for stage in (1, 2, 3) if plain.ranks > 1 and settings.model.forces == "direct" else ():
        yield micro.model_copy(update={"zero_stage": stage}), f"the same, and ZeRO {stage} over {plain.ranks} ranks"


def edges_per_chunk(settings: TrainSettings, gpu: bool) -> int | None:
    """Return how many edges of a message to compute at a time; None where the network takes all at once.

    The numbers of a chunk stay in a core's cache (measured by tests/benchmarks/bench_step.py). Gradient forces also hold
    tangents, so they get fewer; bf16 was faster with more. A GPU needs more to be busy; that is not measured.
    """
    if not settings.model.can_chunk_edges:
        return None
    if gpu:
        numbers = 2**24
    elif settings.model.forces == "gradient":
        numbers = 7 * 2**15
    else:
        numbers = 2**19 if settings.optim.precision == "bf16" else 2**18
    return max(256, numbers // settings.model.message_width)


def with_less_memory(runtime: Runtime, settings: TrainSettings, edges: float) -> Runtime:
    """Return levers that need less memory, after a training has run out of it; `edges` are those of a mean structure."""
    share = max(1, int(settings.optim.batch * edges / runtime.ranks))
    return runtime.model_copy(
        update={
            "edge_chunk": runtime.edge_chunk or edges_per_chunk(settings, False),
            "micro_batch_edges": max(1, (runtime.micro_batch_edges or share) // 2),
        }
    )


def format_gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
