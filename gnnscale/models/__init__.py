"""The architectures; being listed here is being tested by tests/test_physics.py."""

from __future__ import annotations

from gnnscale.architectures import ModelConfig
from gnnscale.models.egnn import EGNN
from gnnscale.models.potential import Normalised, Potential, hidden_matrices, predict

MODELS = {"egnn": EGNN}

__all__ = ["MODELS", "Normalised", "Potential", "build", "hidden_matrices", "predict"]


def build(config: ModelConfig, sources: int, average_degree: float) -> Potential:
    """A new potential with random weights; `average_degree` is neighbours per atom in the training data."""
    backbone = MODELS[config.kind](config, sources, average_degree)
    return Potential(backbone, sources, gradient=config.forces == "gradient")
