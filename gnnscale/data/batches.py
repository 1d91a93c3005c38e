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


def micro_batches(edges: np.ndarray, shares: list[np.ndarray], budget: int | None) -> list[list[np.ndarray]]:
    """Each rank's share of a batch in parts of at most `budget` edges, or of one structure that alone has more.

    Every rank gets as many parts, some of them empty, because ZeRO 2 and 3 communicate in each; as few as will do.
    """
    if budget is None:
        return [[mine] for mine in shares]
    longest = max(1, *map(len, shares))
    for count in range(min(longest, max(1, *(math.ceil(edges[mine].sum() / budget) for mine in shares))), longest + 1):
        cut = [[mine[part] for part in share(edges[mine], count)] for mine in shares]
        if all(len(part) <= 1 or edges[part].sum() <= budget for parts in cut for part in parts):
            break
    return cut
