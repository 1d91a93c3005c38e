"""The architectures; being listed here is being tested by tests/test_physics.py."""

from __future__ import annotations

from gnnscale.architectures import ModelConfig
from gnnscale.models.egnn import EGNN
from gnnscale.models.paper import PaperEGNN
from gnnscale.models.potential import Normalised, Potential, hidden_matrices, predict

MODELS = {"egnn": EGNN, "paper": PaperEGNN}

__all__ = ["MODELS", "Normalised", "Potential", "build", "hidden_matrices", "predict"]


def build(config: ModelConfig, sources: int, average_degree: float, edge_chunk: int | None = None) -> Potential:
    """A new potential with random weights; `average_degree` is neighbours per atom in the training data.

    With `edge_chunk`, edges are taken so many at a time and their messages made again for the gradient: the same numbers
    up to rounding, for a tenth of the memory and 1.0 to 1.4 of the time (tests/benchmarks/bench_step.py). About
    2**18 / width is good on a CPU, but 256 at least. The paper's network keeps all edges, as it did. On a GPU, messages
    are Triton kernels (gnnscale/models/fused.py) if there is Triton: in these chunks, and in direct forces of the form
    'deferred' always, with all edges at once, as nothing is stored of them.
    """
    backbone = MODELS[config.network](config, sources, average_degree, edge_chunk)
    return Potential(backbone, sources, gradient=config.forces == "gradient", tangents=edge_chunk is not None)
