"""The records around a fit: the observations of a law, and the fitted law with its resamples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gnnscale.contract.scaling_results import LawFit, Point
from gnnscale.scaling.fitting.laws import Law
from gnnscale.scaling.fitting.optimum import Sizes


class Observations(NamedTuple):
    """The data of a fit: sizes, losses, and how much each point counts."""

    at: Sizes
    loss: np.ndarray
    cell: np.ndarray  # number of the cell of a point: runs that differ in their seed alone share one

    @property
    def weights(self) -> np.ndarray:
        """The weight of each point: each cell counts once, however many seeds it was run with."""
        return 1.0 / np.bincount(self.cell)[self.cell]


class FittedLaw(NamedTuple):
    """A fitted law with what its LawFit cannot hold: the function, the values as an array, all resamples."""

    entry: LawFit
    law: Law
    values: np.ndarray
    replicas: np.ndarray | None  # (resamples, parameters); None where no interval can be given
    points: tuple[Point, ...]
