"""The division of a conversion into work items, which one process converts at a time and a killed conversion resumes from.

Pieces (see gnnscale/data/formats/pieces.py) are grouped into work items of consecutive ones, by their expected sizes alone. A
work item becomes one shard or several, and no shard holds structures of two items. So the shards are the same byte for
byte whichever rank or part converts which item, and however often the conversion was killed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.contract.settings import ConversionSettings
from gnnscale.data.formats.pieces import Piece
from gnnscale.machine.rank_env import Ranks

STRUCTURES_PER_ITEM = 6144  # expected: three quarters of a shard, as estimates err
SECONDS_PER_ITEM = 15.0  # of work: what a kill may cost, and what several processes can share
MAX_SHARD_ATOMS = 1 << 20  # about 100 MB while they are structures in memory


class Conversion(NamedTuple):
    """Everything that the shards of a dataset depend on."""

    script: ModuleType
    options: Any  # an instance of the script's Options, which differ from script to script
    settings: ConversionSettings
    card: DatasetCard
    quarantined: dict[tuple[str, int], str]  # (name of a piece, number in it) -> why this structure is left out


class WorkItem(NamedTuple):
    """Consecutive pieces that one process converts into shards of their own."""

    number: int
    total: int  # work items of the whole dataset
    pieces: list[Piece]
    structures: float  # expected


def split_work(conversion: Conversion) -> list[WorkItem]:
    """Return the work items of the whole dataset, in order."""
    return group_pieces(conversion.script.pieces(conversion.options), conversion.card)


def group_pieces(pieces: Sequence[Piece], card: DatasetCard) -> list[WorkItem]:
    """Group consecutive pieces into items that take few seconds and fit into a shard, as far as the pieces allow."""
    sizes = [max(piece.structures, 1e-9) for piece in pieces]
    wanted = min(
        STRUCTURES_PER_ITEM,
        max(1.0, SECONDS_PER_ITEM / card.seconds_per_structure),
        MAX_SHARD_ATOMS / card.atoms_per_structure,
    )
    parts = [part for part in divide(sizes, math.ceil(sum(sizes) / wanted)) if part]
    return [
        WorkItem(number, len(parts), [pieces[k] for k in part], sum(sizes[k] for k in part))
        for number, part in enumerate(parts)
    ]


def take_share(items: Sequence[WorkItem], number: int, parts: int) -> list[WorkItem]:
    """Return the items of part `number` where the work is divided into `parts` parts."""
    return [items[k] for k in divide([item.structures for item in items], parts)[number]]


def share_of_rank(items: Sequence[WorkItem], ranks: Ranks) -> list[WorkItem]:
    return take_share(items, ranks.rank, ranks.size)


def divide(sizes: Sequence[float], parts: int) -> list[range]:
    """Divide indices into consecutive parts whose sums of sizes are as equal as possible; some may be empty."""
    ends = np.cumsum(sizes)
    middles = (ends - np.asarray(sizes) / 2) / max(ends[-1] if len(ends) else 1.0, 1e-300) * max(parts, 1)
    firsts = np.searchsorted(middles, np.arange(max(parts, 1) + 1))
    firsts[-1] = len(sizes)
    return [range(a, b) for a, b in pairwise(firsts.tolist())]
