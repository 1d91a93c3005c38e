"""TODO: say what a reader finds here."""

from __future__ import annotations

from gnnscale.architectures.egnn import EGNNConfig

ModelConfig = EGNNConfig  # a union tagged by `kind`, once there is a second architecture
