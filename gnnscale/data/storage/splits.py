"""Splits into training, validation and test by whole groups, and nested subsets for sweeps over the amount of data."""

from __future__ import annotations

import hashlib
from typing import Final, Literal

import numpy as np

from gnnscale.contract.dataset_card import Split, SplitName

NAMES: Final[tuple[SplitName, ...]] = ("train", "validation", "test")  # a split is stored as its index here


def group_hash(group: str) -> int:
    """Return a 63-bit number, the same on every machine; Python's own hash is salted."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "little") >> 1


def split_of(group: str, split: Split) -> int:
    """Return the split of a group as an index into NAMES. It does not depend on which other groups there are."""
    draw = group_hash(f"{split.seed}/{group}") / 2**63
    if draw < split.test:
        return NAMES.index("test")
    return NAMES.index("validation" if draw < split.test + split.validation else "train")


def published_split(name: str) -> int:
    """Return a split that the source itself gives as an index into NAMES."""
    if name not in NAMES:
        raise ValueError(f"split {name!r} of a structure; known: {', '.join(NAMES)}, or None for a split by hash")
    return NAMES.index(name)


def choose_subset(
    sources: np.ndarray, names: tuple[str, ...], count: int, seed: int, how: Literal["random", "prefix"] = "random"
) -> np.ndarray:
    """Choose `count` of the structures, as sorted indices; sources[k] is the source of structure k.

    Subsets are nested (more is a superset), seeded, and stratified: each source has a random order of its own, in which
    the k-th of n is at (k + 1/2)/n, and the subset is what comes first over all sources. With `prefix` the order is that
    of the files, whatever the seed: neighbours there belong to one molecule or relaxation, so a small subset has few.
    """
    order = np.empty(len(sources))
    for index, name in enumerate(names):
        of_source = np.flatnonzero(sources == index)
        if how == "random":
            of_source = of_source[np.random.default_rng([seed, group_hash(name)]).permutation(len(of_source))]
        order[of_source] = (np.arange(len(of_source)) + 0.5) / max(1, len(of_source))
    return np.sort(np.lexsort((sources, order))[:count])
