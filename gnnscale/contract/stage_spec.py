"""spec.json: everything that a stage may know, and how it is to be run."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from gnnscale.architectures.memory import MemoryLevers
from gnnscale.contract.settings import Settings
from gnnscale.schema import Record

FORMAT: Final = 2  # of run directories; raised when an older one can no longer be read


class Runtime(Record):
    """Resources and memory levers of a stage. They are never part of a key, so a result is valid on any site."""

    ranks: int = Field(1, ge=1)
    threads: int = Field(1, ge=1, description="per rank")
    zero_stage: Literal[0, 1, 2, 3] = 0
    micro_batch_edges: int | None = Field(
        None, ge=1, description="memory: edges that a rank takes at a time; null = its share"
    )
    edge_chunk: int | None = Field(None, ge=1, description="memory: edges whose messages exist at a time; null = all")
    activation_checkpointing: bool = Field(False, description="memory: compute each layer again in the backward pass")
    loader_workers: int | None = Field(
        None,
        ge=0,
        description="threads of a rank that make batches in advance; 0 = none; null = 1, or 0 where a training on "
        "CPUs copies its batches from memory",
    )
    data: Literal["map", "memory", "store"] = Field(
        "map", description="structures: on disk, mapped; in each rank's memory; once in all nodes' memory (needs MPI)"
    )
    checkpoint_seconds: float = Field(
        30.0, gt=0, description="between checkpoints, which take a tenth of the time at most"
    )
    shorter: tuple[str, ...] = Field(
        (),
        description="shorter trainings with the same first steps, longest first: directories "
        "relative to this one; this one may begin where they began their decay",
    )

    @property
    def memory_levers(self) -> MemoryLevers:
        return MemoryLevers(self.zero_stage, self.micro_batch_edges, self.edge_chunk, self.activation_checkpointing)


class StageSpec(Record):
    """spec.json of a stage. `key` covers everything but `runtime`."""

    format: Literal[2] = FORMAT
    id: str = Field(description="stage/name, as people type it")
    key: str = Field(description="hash of settings, code, raw files, image and the keys of `needs`; it holds no path")
    settings: Settings
    code: dict[str, str] = Field(description="source file -> digest, of all files on which the result depends")
    raw: dict[str, str] = Field(default_factory=dict, description="input file, relative to its folder -> digest")
    image: str | None = Field(None, description="digest of the container image; null = this environment")
    needs: dict[str, str] = Field(default_factory=dict, description="id -> its directory, relative to this one")
    runtime: Runtime = Runtime()
