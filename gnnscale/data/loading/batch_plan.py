"""The structures of each step and rank, as pure functions: a checkpoint needs to remember only the step."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np


def steps_for(structures: int, batch: int, epochs: float) -> int:
    """Return the number of steps that these epochs take, at least one."""
    return max(1, math.ceil(epochs * structures / min(batch, structures)))


def global_batch(step: int, structures: int, batch: int, seed: int) -> np.ndarray:
    """Return the indices of the structures of one optimiser step, over all ranks.

    The data are an endless sequence of permutations, one per epoch; a step takes the next `batch` of it, across epochs.
    """
    batch = min(batch, structures)
    first, last = step * batch, (step + 1) * batch
    taken = []
    while first < last:
        epoch, start = divmod(first, structures)
        stop = min(structures, start + last - first)
        taken.append(permutation(structures, seed, epoch)[start:stop])
        first += stop - start
    return np.concatenate(taken).astype(np.int64)


@lru_cache(maxsize=2)  # a step may lie across two epochs; a permutation of thirty million structures takes a second
def permutation(structures: int, seed: int, epoch: int) -> np.ndarray:
    row = np.random.default_rng([seed, epoch]).permutation(structures)
    row = row.astype(np.min_scalar_type(structures))
    row.flags.writeable = False
    return row


def divide_batch(costs: np.ndarray, ranks: int) -> list[np.ndarray]:
    """Return the positions in a batch for each rank, the longest first to the least loaded: equal work, not equal counts."""
    if ranks == 1:
        return [np.arange(len(costs))]
    owner = assign_ranks(np.asarray(costs, float), ranks)
    order = np.argsort(owner, kind="stable")
    ends = np.searchsorted(owner[order], np.arange(ranks + 1)).tolist()
    return [order[a:b] for a, b in pairwise(ends)]


def assign_ranks(costs: np.ndarray, ranks: int) -> np.ndarray:
    """Return the rank of each position, chosen for many positions at a time: (n,).

    As long as the next rank, by load, has less than every rank served in this round will have, serving it is what
    longest-first does too. For 32 structures per rank this takes some 33 rounds instead of a choice for each structure.
    """
    order = np.argsort(-costs, kind="stable")
    owner, loads, done = np.empty(len(costs), np.int64), np.zeros(ranks), 0
    while done < len(order):
        least = np.argsort(loads, kind="stable")[: len(order) - done]
        following = order[done : done + len(least)]
        after = loads[least] + costs[following]
        late = loads[least[1:]] >= np.minimum.accumulate(after)[:-1]
        served = 1 + int(late.argmax()) if late.any() else len(least)
        owner[following[:served]] = least[:served]
        loads[least[:served]] = after[:served]
        done += served
    return owner


def micro_batches(edges: np.ndarray, shares: list[np.ndarray], budget: int | None, rank: int) -> list[np.ndarray]:
    """Divide this rank's share of a batch into parts of at most `budget` edges, or of one structure that has more.

    Every rank gets the same number of parts, some of them empty, because ZeRO 2 and 3 communicate in each part; the
    number is the smallest that suffices.
    """
    if budget is None:
        return [shares[rank]]
    sizes = np.array([len(share) for share in shares])
    longest = max(1, int(sizes.max()))
    ranks, owner, every = np.arange(len(shares)), np.repeat(np.arange(len(shares)), sizes), np.concatenate(shares)
    within = np.arange(len(every)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    falling = np.lexsort((within, -edges[every], owner))
    counts = np.zeros((len(shares), longest), np.int64)  # edges of each share's structures, longest first, then zeros
    counts[owner, within] = edges[every[falling]]
    for count in range(min(longest, max(1, math.ceil(counts.sum(1).max() / budget))), longest + 1):
        loads, held, part = np.zeros((len(shares), count)), np.zeros((len(shares), count), int), np.empty_like(counts)
        for k in range(longest):  # for all ranks at once
            has_more = k < sizes
            part[:, k] = loads.argmin(1)
            loads[ranks[has_more], part[has_more, k]] += counts[has_more, k]
            held[ranks[has_more], part[has_more, k]] += 1
        if ((held <= 1) | (loads <= budget)).all():
            break
    own, part_of_own = every[falling][owner == rank], part[rank, : sizes[rank]]
    return [np.sort(own[part_of_own == number]) for number in range(count)]
