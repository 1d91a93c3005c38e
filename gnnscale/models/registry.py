"""TODO: say what a reader finds here."""

from __future__ import annotations

from gnnscale.architectures.registry import ModelConfig
from gnnscale.models.egnn import EGNN
from gnnscale.models.egnn_paper import PaperEGNN
from gnnscale.models.potential import Potential

MODELS = {"egnn": EGNN, "paper": PaperEGNN}


def build(config: ModelConfig, sources: int, average_degree: float, edge_chunk: int | None = None) -> Potential:
    """A new potential with random weights; `average_degree` is neighbours per atom in the training data.

    With `edge_chunk`, edges are taken so many at a time and their messages made again for the gradient: the same numbers
    up to rounding, for a tenth of the memory and 1.0 to 1.4 of the time (tests/benchmarks/bench_step.py). About
    2**18 / width is good on a CPU, but 256 at least. The paper's network keeps all edges, as it did. On a GPU, messages
    are Triton kernels (gnnscale/models/kernels/triton.py) if there is Triton: in these chunks, and in direct forces of the form
    'deferred' always, with all edges at once, as nothing is stored of them.
    """
    backbone = MODELS[config.network](config, sources, average_degree, edge_chunk)
    return Potential(backbone, sources, gradient=config.forces == "gradient", tangents=edge_chunk is not None)
