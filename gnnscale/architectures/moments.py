"""Options of the network of moments, with exact counts of parameters, FLOPs and memory."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gnnscale.architectures.base import ELEMENTS, Architecture

CHANNELS_SEEN = 8  # at most: what a message sees costs numbers per edge, whatever the width

# As in gnnscale/architectures/egnn.py, by forces: numbers per channel for each atom in each layer, and once; for each edge
# in each layer, and once; numbers for each edge in each layer, and once, whatever the width. Fitted to the allocations of 35
# steps in float32 (widths 32 to 512, depths 1 to 5, 15 to 60 neighbours): the worst is 8 % off, with gradient forces 2 %.
NUMBERS_KEPT: dict[str, tuple[float, ...]] = {
    "direct": (18.2, -7.3, 1.36, 1.33, 18, 215),
    "gradient": (55.6, -1.7, 8.0, 2.2, 84, 210),
}


class MomentsConfig(Architecture):
    """A network of scalars, vectors and traceless tensors, with messages that see angles (gnnscale/models/moments.py)."""

    kind: Literal["moments"] = "moments"
    radial: int = Field(8, ge=1, description="radial basis functions")
    source_heads: bool = Field(False, description="a last matrix for each source; else one for all")

    @property
    def can_chunk_edges(self) -> bool:
        return False

    @property
    def channels(self) -> int:
        """Vectors of a node, and tensors; fewer than its scalars, as each costs three or five numbers."""
        return max(1, self.width // 8)

    @property
    def channels_seen(self) -> int:
        """Vectors and tensors of the sender that a message sees."""
        return min(CHANNELS_SEEN, self.channels)

    @property
    def outputs(self) -> int:
        """Numbers that an atom ends with: its energy, and for direct forces a gate for each vector."""
        return 1 + self.channels * (self.forces == "direct")

    def body_parameters(self) -> int:
        w, k = self.width, self.channels
        messages = 2 * w * w + self.radial * w + (w * w + w) + 2 * k * w
        layer = messages + (2 * w + 3 * k + 1) * w + w * w + w
        angles = 2 * self.channels_seen * w
        return self.depth * layer + (self.depth - 1) * angles + w * w + w + w * self.outputs

    def parameters(self, sources: int) -> int:
        heads = (sources - 1) * self.width * self.outputs * self.source_heads
        return self.body_parameters() + (ELEMENTS + sources) * self.width + heads

    def flops(self, atoms: float, edges: float) -> float:
        """Return the FLOPs of one training step, forward and backward, in all matrix products; 2 per multiply-add.

        As in EGNN, a product costs three times its forward pass, and six times with gradient forces, less where its input
        does not depend on positions or its slope is constant.
        """
        w, k, later = self.width, self.channels, self.depth - 1
        projection, radial, angles = atoms * 2 * w * w, edges * self.radial * w, edges * 2 * self.channels_seen * w
        nodes = atoms * (w * w + (2 * w + 3 * k) * w + w * w + (3 + 5) * k * w)
        hidden, readout = atoms * w * w, atoms * w * self.outputs
        if self.forces == "direct":  # the radial basis has no dL/dx
            layers = self.depth * (3 * (projection + nodes) + 2 * radial) + later * 3 * angles
            return 2 * (layers + 3 * (hidden + readout))
        layers = self.depth * 6 * (nodes + radial) + later * 6 * angles + (later * 6 + 3) * projection
        return 2 * (layers + 6 * hidden + 5 * readout)

    def activation_bytes(
        self, atoms: float, edges: float, edge_chunk: int | None = None, bytes_per_number: int = 4
    ) -> int:
        """Return the peak of a training step above weights, gradients and moments; 2 bytes per number mean bfloat16.

        Then norms, residuals and geometry stay float32 and weights are copied, which is known less well: to 10 %.
        """
        w = self.width
        atom, atom_once, edge, edge_once, small, small_once = NUMBERS_KEPT[self.forces]
        node = atoms * w * (atom * self.depth + atom_once)
        wide = edges * w * (edge * self.depth + edge_once)
        thin = edges * (small * self.depth + small_once)
        if bytes_per_number == 4:
            return round(4 * (node + wide + thin))
        return round(2.4 * node + 2 * wide + 4.8 * thin + 13 * w * w * self.depth)
