"""Options of EGNN in its three forms, with exact counts of parameters, FLOPs and memory."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gnnscale.architectures.base import ELEMENTS, Architecture

# What a step keeps at its peak, by (form, forces, in chunks): numbers per channel for each atom in each layer, and once;
# for each edge in each layer, and once; for each edge of a chunk; numbers for each edge, whatever the width; and for each
# weight of a square matrix in each layer. Fitted to the allocations of 283 steps in float32 (widths 64 to 1024, depths 1
# to 5, 15 to 60 neighbours): the worst is 11 % off, without chunks 3 %.
NUMBERS_KEPT: dict[tuple[str, str, bool], tuple[float, ...]] = {
    ("edge", "direct", False): (11.6, -1.1, 3.0, 2.0, 0.0, 88, 0.0),
    ("edge", "direct", True): (9.6, 0.3, 0.0, 0.0, 7.1, 24, 0.4),
    ("edge", "gradient", False): (31.8, 8.2, 16.1, 1.9, 0.0, 152, 0.0),
    ("edge", "gradient", True): (25.0, -10.8, 0.0, 0.0, 18.9, 43, 3.0),
    ("deferred", "direct", False): (12.6, -2.1, 1.0, 2.0, 0.0, 88, 0.0),
    ("deferred", "direct", True): (11.7, 0.9, 0.0, 0.0, 4.8, 25, 0.0),
    ("deferred", "gradient", False): (37.8, 8.2, 8.1, 1.9, 0.0, 152, 0.0),
    ("deferred", "gradient", True): (34.9, -8.6, 0.0, 0.0, 15.2, 41, 3.0),
    ("paper", "direct", False): (3.6, -1.4, 3.1, 0.8, 0.0, 12, 0.0),
}


class EGNNConfig(Architecture):
    """An E(3)-equivariant graph network (gnnscale/models/egnn.py)."""

    kind: Literal["egnn"] = "egnn"
    form: Literal["deferred", "edge", "paper"] = Field(
        "deferred",  # the lowest error at equal compute, at every budget of workflow/studies/forms.yaml
        description="second matrix after the sum over edges, or on each edge; or the network of arXiv:2504.08112 as it was",
    )
    radial: int = Field(8, ge=1, description="radial basis functions; the paper has none")
    source_heads: bool = Field(False, description="a last matrix for each source; else one for all")

    @model_validator(mode="after")
    def _paper_is_direct(self) -> EGNNConfig:
        if self.form == "paper" and self.forces != "direct":
            raise ValueError(f"form 'paper' has forces 'direct', not {self.forces!r}: set that, or another form")
        if self.form == "paper" and self.source_heads:
            raise ValueError("form 'paper' knows no sources: set source_heads: false, or another form")
        return self

    @property
    def network(self) -> str:
        return "egnn_paper" if self.form == "paper" else "egnn"

    @property
    def label(self) -> str:
        return f"egnn-{self.form}"

    @property
    def is_equivariant(self) -> bool:
        return self.form != "paper"

    @property
    def can_chunk_edges(self) -> bool:
        return self.form != "paper"  # which keeps all edges, as it did

    @property
    def channels(self) -> int:
        """Vectors of a node; fewer than its scalars, as each costs three numbers per edge."""
        return max(1, self.width // 8)

    @property
    def outputs(self) -> int:
        """Numbers that an atom ends with: its energy, and for direct forces a gate for each vector."""
        return 1 + self.channels * (self.forces == "direct")

    def body_parameters(self) -> int:
        w, k = self.width, self.channels
        if self.form == "paper":
            return sum(self._paper_layers()) + 2 * (w * w + w) + 4 * w + 4
        layer = 2 * w * w + self.radial * w + (w * w + w) + k * w + (2 * w + k + 1) * w + w * w + w
        return self.depth * layer + w * w + w + w * self.outputs

    def parameters(self, sources: int) -> int:
        if self.form == "paper":
            return self.body_parameters()
        heads = (sources - 1) * self.width * self.outputs * self.source_heads
        return self.body_parameters() + (ELEMENTS + sources) * self.width + heads

    def _paper_layers(self) -> list[int]:
        """Return the parameters of each layer: the first sees Z, x, y, z, and atoms do not move in the last."""
        w, moving = self.width, self.width**2 + 2 * self.width
        later = [w] * (self.depth - 1)
        return [
            2 * f * w + 3 * w + (w * w + w) + (f + w + 1) * w + (w * w + w) + moving * (n < self.depth - 1)
            for n, f in enumerate([4, *later])
        ]

    def _paper_flops(self, atoms: float, edges: float) -> float:
        w, later = self.width, self.depth - 1
        constant = atoms * 4 * 2 * w + edges * 2 * w  # of inputs that have no gradient
        edge = later * edges * 2 * w + self.depth * edges * w * w + later * edges * (w * w + w)
        node = later * atoms * 2 * w * w + atoms * (4 * w + w * w + later * 2 * w * w) + self.depth * atoms * w * w
        return 2 * (2 * constant + 3 * (edge + node + atoms * (2 * w * w + 4 * w)))

    def flops(self, atoms: float, edges: float) -> float:
        """Return the FLOPs of one training step, forward and backward, in all matrix products; 2 per multiply-add.

        A product y = Wx costs three times its forward pass, for dL/dW and dL/dx. Gradient forces cost six: dE/dx once
        more, and both derivatives of that; less where the input does not depend on positions or the slope is constant.
        """
        if self.form == "paper":
            return self._paper_flops(atoms, edges)
        w, k = self.width, self.channels
        direct = self.forces == "direct"
        projection, radial = atoms * 2 * w * w, edges * self.radial * w
        second = (edges if self.form == "edge" else atoms) * w * w
        nodes = atoms * ((2 * w + k) * w + w * w + 3 * k * w)  # the update of h, and of three components of V
        hidden, readout = atoms * w * w, atoms * w * self.outputs
        if direct:  # the radial basis has no dL/dx
            return 2 * (self.depth * (3 * (projection + second + nodes) + 2 * radial) + 3 * (hidden + readout))
        later = self.depth - 1  # layers whose projection depends on positions
        total = self.depth * 6 * (second + nodes + radial) + (later * 6 + 3) * projection + 6 * hidden + 5 * readout
        return 2 * total

    def activation_bytes(
        self, atoms: float, edges: float, edge_chunk: int | None = None, bytes_per_number: int = 4
    ) -> int:
        """Return the peak of a training step above weights, gradients and moments; 2 bytes per number mean bfloat16.

        Then norms, residuals and geometry stay float32 and weights are copied, which is known less well: to 15 %.
        """
        chunked, w = edge_chunk is not None and self.can_chunk_edges, self.width
        atom, atom_once, edge, edge_once, scratch, small, square = NUMBERS_KEPT[self.form, self.forces, chunked]
        node = atoms * w * (atom * self.depth + atom_once)
        wide = edges * w * (edge * self.depth + edge_once) + min(edge_chunk or 0, edges) * w * scratch
        square *= w * w * self.depth
        if bytes_per_number == 4:
            return round(4 * (node + wide + edges * small + square))
        copies = 13 * w * w * self.depth
        return round(2.4 * node + 2 * wide + 4.8 * edges * small + 4 * square + copies)
