"""The interface of whatever takes the steps of a training: gradients, updates, and its state as whole tensors by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.train.checkpoint import TensorShapes

MicroBatch = Callable[[], tuple[AtomGraphs, Properties]]  # waits for a batch that is made ahead of its use


class Engine(ABC):
    """A model with its optimiser. Two engines give the same numbers up to rounding, and read each other's checkpoints."""

    name: str  # as logs and checkpoints have it
    device: torch.device

    @abstractmethod
    def learn(self, micro: Sequence[MicroBatch], counts: np.ndarray) -> Tensor:
        """Make the gradient of a step from this rank's share of a global batch; return its sums of penalties, (3,) float64.

        `counts` (3,) are the labels of the global batch, by which the sums over all ranks will be divided.
        """

    @abstractmethod
    def penalties(self, graphs: AtomGraphs, labels: Properties) -> Tensor:
        """Return the sums of penalties (3,) of a batch, to learn nothing from."""

    @abstractmethod
    def step(self, rate: float, number: int) -> float:
        """Clip, update for the `number`-th time, and return the norm before clipping; if not finite, nothing was changed."""

    @abstractmethod
    def averaged(self) -> AbstractContextManager[None]:
        """Put the running mean, if there is one, in the place of the weights while the context lasts."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Return the content of the model's file, whole on every rank; inside `averaged`, the mean."""

    @abstractmethod
    def layout(self) -> TensorShapes:
        """Return name|key and shape of each tensor of the state, all as the parameter is: weight, moments and mean."""

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor of `layout`; all ranks must take all of them."""

    @abstractmethod
    def load(self, read: Callable[[str], Tensor], steps: int) -> None:
        """Load what `tensors` gave after `steps` steps; the model must have had the weights when the engine was made."""


def running_mean_share(decay: float, number: int) -> float:
    """Return how much the weights of the `number`-th step count in their running mean.

    The first steps count less: the mean of t steps has no older ones to remember.
    """
    return 1 - min(decay, number / (number + 9))
