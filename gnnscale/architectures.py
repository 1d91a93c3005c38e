"""The options of every architecture, each with its exact counts of parameters and FLOPs: no torch, so plans may ask.

Apart from specs.py because these counts are results: a change here makes again whatever depends on them.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Literal

from pydantic import Field

from gnnscale.schema import Spec

ELEMENTS = 119  # rows of tables that are indexed by atomic number


class EGNNConfig(Spec):
    """An E(3)-equivariant graph network (gnnscale/models/egnn.py)."""

    kind: Literal["egnn"] = "egnn"
    form: Literal["edge", "deferred"] = Field("edge", description="second matrix on each edge, or after their sum")
    width: int = Field(64, ge=1, description="channels of a node")
    depth: int = Field(3, ge=1, description="message-passing layers")
    cutoff: float = Field(5.0, gt=0, description="Angstrom")
    radial: int = Field(8, ge=1, description="radial basis functions")
    forces: Literal["direct", "gradient"] = Field("direct", description="an equivariant head, or exactly -dE/dx")

    @property
    def channels(self) -> int:
        """Vectors of a node; fewer than its scalars, as each costs three numbers per edge."""
        return max(1, self.width // 8)

    def body_parameters(self) -> int:
        """N of the scaling laws: all but the embeddings of elements and sources."""
        w, k = self.width, self.channels
        layer = 2 * w * w + self.radial * w + (w * w + w) + k * w + (2 * w + k + 1) * w + w * w + w
        readout = w * (1 + k) if self.forces == "direct" else w
        return self.depth * layer + w * w + w + readout

    def parameters(self, sources: int) -> int:
        return self.body_parameters() + (ELEMENTS + sources) * self.width

    def flops(self, atoms: float, edges: float) -> float:
        """Of one training step, forward and backward, in all matrix products; 2 per multiply-add.

        A product y = Wx costs three times its forward pass, for dL/dW and dL/dx. Gradient forces cost six: dE/dx once
        more, and both derivatives of that; less where the input does not depend on positions or the slope is constant.
        """
        w, k = self.width, self.channels
        direct = self.forces == "direct"
        projection, radial = atoms * 2 * w * w, edges * self.radial * w
        second = (edges if self.form == "edge" else atoms) * w * w
        nodes = atoms * ((2 * w + k) * w + w * w + 3 * k * w)  # the update of h, and of three components of V
        hidden, readout = atoms * w * w, atoms * w * (1 + k * direct)
        if direct:  # the radial basis has no dL/dx
            return 2 * (self.depth * (3 * (projection + second + nodes) + 2 * radial) + 3 * (hidden + readout))
        later = self.depth - 1  # layers whose projection depends on positions
        total = self.depth * 6 * (second + nodes + radial) + (later * 6 + 3) * projection + 6 * hidden + 5 * readout
        return 2 * total

    @classmethod
    def for_parameters(cls, target: float, depth: int = 3, **other: Any) -> EGNNConfig:
        """The width whose body_parameters come nearest to `target`."""

        def at(width: int) -> EGNNConfig:
            return cls(width=width, depth=depth, **other)

        above = bisect_left(range(1_000_000), target, lo=2, key=lambda width: at(width).body_parameters())
        return min(at(above - 1), at(above), key=lambda config: abs(config.body_parameters() - target))


ModelConfig = EGNNConfig  # a union tagged by `kind`, once there is a second architecture
