"""The record that the options of every architecture derive from: what plans, stages and reports may ask of any network."""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_left
from typing import ClassVar, Literal, Self

from pydantic import Field

from gnnscale.schema import Record

ELEMENTS = 119  # rows of tables that are indexed by atomic number


class Architecture(Record):
    """The options of one network with its exact counts of parameters, FLOPs and activation memory; no torch.

    A subclass lies alone in the file of this package that is called after its `kind`; its network lies in the file of
    gnnscale/models/ that `network` names. Nothing else knows which architectures there are.
    """

    WIDTH_STEP: ClassVar[int] = 1  # widths are multiples of this

    kind: str = ""  # a subclass narrows it to the name of its file
    width: int = Field(64, ge=1, description="channels of a node")
    depth: int = Field(3, ge=1, description="message-passing layers")
    cutoff: float = Field(5.0, gt=0, description="Angstrom")
    forces: Literal["direct", "gradient"] = Field("direct", description="an equivariant head, or exactly -dE/dx")

    # ------------------------------------------------------------------------------------------------ exact counts
    @abstractmethod
    def body_parameters(self) -> int:
        """Return N of the scaling laws: all parameters but the embeddings of elements and sources and further heads."""

    @abstractmethod
    def parameters(self, sources: int) -> int:
        """Return all parameters of a network that is trained on so many sources."""

    @abstractmethod
    def flops(self, atoms: float, edges: float) -> float:
        """Return the FLOPs of one training step, forward and backward, in all matrix products; 2 per multiply-add."""

    @abstractmethod
    def activation_bytes(
        self, atoms: float, edges: float, edge_chunk: int | None = None, bytes_per_number: int = 4
    ) -> int:
        """Return the peak of a training step above weights, gradients and moments; 2 bytes per number: bfloat16."""

    # ------------------------------------------------------------------------------------------------------- names
    @property
    def label(self) -> str:
        """Name in tables and figures: a law is fitted to the runs of one label."""
        return self.kind

    @property
    def size_fields(self) -> tuple[str, ...]:
        """Fields that short_name() spells out."""
        return ("width", "depth")

    def short_name(self) -> str:
        """Return the size as names of runs have it."""
        return f"w{self.width}-d{self.depth}"

    def describe(self) -> str:
        """Return the network in words, for captions."""
        return f"{self.label}, width {self.width}, depth {self.depth}, {self.forces} forces"

    # ------------------------------------------------------------------------------------------------- the network
    @property
    def network(self) -> str:
        """File of the network, without .py, in gnnscale/models/."""
        return self.kind

    @property
    def source_files(self) -> tuple[str, str]:
        """Files that a result of this architecture depends on, and that no import names."""
        return f"gnnscale/architectures/{self.kind}.py", f"gnnscale/models/{self.network}.py"

    @property
    def is_equivariant(self) -> bool:
        """True unless the network is listed to be compared with, and breaks the physics that all others keep."""
        return True

    @property
    def has_stress(self) -> bool:
        """True if the network gives stress: where it is a derivative of the energy, as forces then are."""
        return self.forces == "gradient"

    @property
    def rate_width(self) -> int:
        """Fan-in of hidden matrices, by which their learning rate is scaled."""
        return self.width

    @property
    def message_width(self) -> int:
        """Numbers that a layer holds for each edge, by which a chunk of edges is measured."""
        return self.width

    # ---------------------------------------------------------------------------------------------- memory levers
    @property
    def can_chunk_edges(self) -> bool:
        """True if messages can be made for some edges at a time."""
        return True

    @property
    def can_checkpoint_layers(self) -> bool:
        """True if it saves memory to compute layers again: hardly where forces are derivatives, whose graph is kept."""
        return self.forces == "direct"

    # ------------------------------------------------------------------------------------------------------- sizes
    def with_width(self, width: int) -> Self:
        """Return the same network at another width."""
        return self.model_copy(update={"width": width})

    def for_parameters(self, target: float) -> Self:
        """Return the same network at the width whose body parameters come nearest to `target`."""
        step = self.WIDTH_STEP
        above = bisect_left(range(1_000_000), target, 2, key=lambda k: self.with_width(k * step).body_parameters())
        around = [self.with_width(k * step) for k in (above - 1, above)]
        return min(around, key=lambda config: abs(config.body_parameters() - target))

    def at_all_widths(self) -> list[Self]:
        """Return the same network at the widths worth a look: all up to 64, then in steps of 1.5 %, narrowest first."""
        step = self.WIDTH_STEP
        coarse = math.lcm(8, step)
        narrow = range(step * math.ceil(4 / step), 64, step)
        wide = {max(narrow.start, coarse * round(2 ** (k / 48) / coarse)) for k in range(48 * 5, 48 * 17)}
        return [self.with_width(width) for width in sorted({*narrow, *wide})]
