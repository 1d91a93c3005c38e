"""Options of a continuous-filter convolution after SchNet, small enough to be counted by eye: the toy architecture."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gnnscale.architectures.base import ELEMENTS, Architecture


class ToyConfig(Architecture):
    """Messages are the features of neighbours, each channel weighed by its own function of the distance."""

    WIDTH_STEP = 4

    kind: Literal["toy"] = "toy"
    filters: int = Field(5, ge=1, description="radial functions")

    @property
    def can_chunk_edges(self) -> bool:
        return False

    def body_parameters(self) -> int:
        w = self.width
        return self.depth * (self.filters * w + w * w) + w + w * (self.forces == "direct")

    def parameters(self, sources: int) -> int:
        return self.body_parameters() + ELEMENTS * self.width

    def flops(self, atoms: float, edges: float) -> float:
        w, direct = self.width, self.forces == "direct"
        # Radial functions of direct forces have no dL/dx; the slope of an energy by its last features is constant.
        filters, update, energy = (2, 3, 3) if direct else (6, 6, 5)
        layer = filters * edges * self.filters * w + update * atoms * w * w
        return 2 * (self.depth * layer + energy * atoms * w + 3 * edges * w * direct)

    def activation_bytes(
        self, atoms: float, edges: float, edge_chunk: int | None = None, bytes_per_number: int = 4
    ) -> int:
        kept = 4 if self.forces == "direct" else 12
        return round(bytes_per_number * kept * self.depth * self.width * (edges + atoms))
