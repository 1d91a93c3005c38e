"""Which structures go into which step and rank: pure functions, so a checkpoint needs to remember only the step."""

from __future__ import annotations

import math

import numpy as np


def steps_for(structures: int, batch: int, epochs: float) -> int:
    return max(1, math.ceil(epochs * structures / min(batch, structures)))


def global_batch(step: int, structures: int, batch: int, seed: int) -> np.ndarray:
    """Indices of the structures of one optimiser step, over all ranks.

    The data are an endless row of permutations, one an epoch; a step takes the next `batch` of it, across the seam.
    """
    batch = min(batch, structures)
    first, last = step * batch, (step + 1) * batch
    epochs = range(first // structures, (last - 1) // structures + 1)
    row = np.concatenate([np.random.default_rng([seed, epoch]).permutation(structures) for epoch in epochs])
    start = first - epochs[0] * structures
    return row[start : start + batch]


def share(costs: np.ndarray, ranks: int) -> list[np.ndarray]:
    """Positions of a batch for each rank, longest first onto the least loaded: equal work, not equal numbers."""
    loads, shares = np.zeros(ranks), [[] for _ in range(ranks)]
    for position in np.argsort(-costs, kind="stable"):
        least = int(np.argmin(loads))
        loads[least] += costs[position]
        shares[least].append(position)
    return [np.array(sorted(positions), np.int64) for positions in shares]
