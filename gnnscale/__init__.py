"""gnnscale: how an atomistic graph neural network improves with parameters, data and compute."""

__version__ = "0.1.0"
