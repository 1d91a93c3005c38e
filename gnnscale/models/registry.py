"""Networks by the name that their options give them. Only the chosen one is imported, so that a key knows of no other."""

from __future__ import annotations

from importlib import import_module

from gnnscale.architectures.registry import ModelConfig, find_class
from gnnscale.models.backbone import Backbone
from gnnscale.models.potential import Potential


def find_network(name: str) -> type[Backbone]:
    """Return the network in gnnscale/models/NAME.py."""
    network = find_class(import_module(f"gnnscale.models.{name}"), Backbone)  # type: ignore[type-abstract] # it makes none
    assert network, f"gnnscale/models/{name}.py defines no class below Backbone"
    return network


def build(config: ModelConfig, sources: int, average_degree: float, edge_chunk: int | None = None) -> Potential:
    """Make a potential with random weights; `average_degree` is neighbours per atom in the training data.

    With `edge_chunk`, edges are taken so many at a time and their messages made again for the gradient: the same numbers
    up to rounding, for a tenth of the memory and 1.0 to 1.4 of the time (tests/benchmarks/bench_step.py). About
    2**18 / width is good on a CPU, but 256 at least. A network that cannot do so keeps all edges. On a GPU, messages are
    Triton kernels (gnnscale/models/kernels/triton.py) if there is Triton: in these chunks, and in direct forces of the
    form 'deferred' always, with all edges at once, as nothing is stored of them.
    """
    backbone = find_network(config.network)(config, sources, average_degree, edge_chunk)
    tangents = edge_chunk is not None and config.can_chunk_edges
    return Potential(backbone, sources, gradient=config.forces == "gradient", tangents=tangents)
