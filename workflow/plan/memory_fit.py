"""How a training is run so that it fits into the memory of a rank: what the planner chooses, or why it refuses. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gnnscale.architectures.memory import Memory, peak_bytes
from gnnscale.contract.settings import LeverSettings, TrainSettings
from gnnscale.contract.stage_spec import Runtime
from workflow.config.site import SiteConfig

LIBRARIES = 0.7e9  # bytes of a rank before it holds any number of ours: Python, torch, DeepSpeed
MARGIN = 1.6  # batches are drawn at random: the largest of a run over the mean, as seen with five mixed sources


class Levers(NamedTuple):
    """The first choice that fits; a refusal in words if none does."""

    runtime: Runtime
    memory: Memory
    said: str
    refusal: str


def choose(
    settings: TrainSettings, sources: int, atoms: float, edges: float, site: SiteConfig, ranks: int | None = None
) -> Levers:
    """`atoms` and `edges` are those of a mean structure; `ranks` of the training, None = as the site has them."""
    optim, room = settings.optim, site.rank_bytes - LIBRARIES
    batch = MARGIN * optim.batch

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

    for runtime, said in candidates(settings, site, batch * edges, ranks or site.launch.ranks):
        memory = peak(runtime)
        if memory.peak <= room:
            return Levers(runtime, memory, said, "")
    static = memory.parameters + memory.optimiser + memory.gradients
    return Levers(
        runtime,
        memory,
        said,
        f"needs {gigabytes(memory.peak + LIBRARIES)} at its fullest with every lever "
        f"({gigabytes(static)} of it weights, gradients and moments), a rank here has "
        f"{gigabytes(site.rank_bytes)}; a smaller width, or a site with more memory",
    )


def compare(settings: LeverSettings, sources: int, atoms: float, edges: float, site: SiteConfig, ranks: int) -> Levers:
    """The way without any lever, with which others are compared; and the chunk that a training would have."""
    train = TrainSettings(model=settings.model)
    plain, share = Runtime(ranks=ranks, threads=site.launch.threads_per_rank), settings.batch / ranks
    memory = peak_bytes(settings.model, share * atoms, share * edges, plain.memory_levers, ranks=ranks, sources=sources)
    runtime = plain.model_copy(update={"edge_chunk": chunk_edges(train, site.node.gpus is not None)})
    needed = memory.peak + LIBRARIES
    refusal = (
        ""
        if needed <= site.rank_bytes
        else (
            f"the plain step of `levers` needs {gigabytes(needed)}, a rank here has {gigabytes(site.rank_bytes)}; a smaller "
            "levers.batch or width"
        )
    )
    return Levers(runtime, memory, "", refusal)


def candidates(settings: TrainSettings, site: SiteConfig, edges: float, ranks: int) -> Iterator[tuple[Runtime, str]]:
    """From no lever to all; each next one saves more and costs more time."""
    plain = Runtime(ranks=ranks, threads=site.launch.threads_per_rank)
    yield plain, ""
    chunk = chunk_edges(settings, site.node.gpus is not None)
    chunked = plain.model_copy(update={"edge_chunk": chunk})
    yield chunked, f"edges {chunk} at a time"
    for parts in (4, 16):
        budget = max(1, int(edges / plain.ranks / parts))
        micro = chunked.model_copy(update={"micro_batch_edges": budget})
        yield micro, f"edges {chunk} at a time, micro-batches of {budget:,} edges"
    for stage in (1, 2, 3) if plain.ranks > 1 and settings.model.forces == "direct" else ():
        yield micro.model_copy(update={"zero_stage": stage}), f"the same, and ZeRO {stage} over {plain.ranks} ranks"


def chunk_edges(settings: TrainSettings, gpu: bool) -> int:
    """Edges of a message at a time: so many that they stay in a core's cache (tests/benchmarks/bench_step.py). Gradient
    forces hold tangents too, so fewer; in bf16 more were faster. A GPU is kept busy by more; that is not measured."""
    if gpu:
        numbers = 2**24
    elif settings.model.forces == "gradient":
        numbers = 7 * 2**15
    else:
        numbers = 2**19 if settings.optim.precision == "bf16" else 2**18
    return max(256, numbers // settings.model.width)


def smaller(runtime: Runtime, settings: TrainSettings, edges: float) -> Runtime:
    """The same training in less memory, after it has run out of it; `edges` of a mean structure."""
    share = max(1, int(settings.optim.batch * edges / runtime.ranks))
    return runtime.model_copy(
        update={
            "edge_chunk": runtime.edge_chunk or chunk_edges(settings, False),
            "micro_batch_edges": max(1, (runtime.micro_batch_edges or share) // 2),
        }
    )


def gigabytes(bytes: float) -> str:
    return f"{bytes / 1e9:,.1f} GB"
