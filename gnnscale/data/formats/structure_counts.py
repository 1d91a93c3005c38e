"""Numbers of structures in files without an index: how often a word occurs, in a bounded part of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import IO

from gnnscale.data.formats.frame_counts import COMPRESSED

BYTES_TO_COUNT = 1 << 24  # of a longer file the first bytes are counted
FILES_TO_COUNT = 64  # of a kind; of more files, a few are counted


def count_word(file: IO[bytes], word: bytes, consumed: Callable[[], int], length: int) -> float:
    """Return how often a word occurs in a file of a length, of which `consumed` tells how much has been read.

    The first bytes are counted; what follows them is taken to be like them.
    """
    count, read, tail = 0, 0, b""
    while read < BYTES_TO_COUNT and (block := file.read(1 << 20)):
        read += len(block)
        count += (tail + block).count(word)
        tail = block[1 - len(word) :]
    return count * length / max(consumed(), 1)


def count_words(path: Path, word: bytes) -> float:
    """Return how often a word occurs in a file, which may be compressed."""
    with open(path, "rb") as packed:
        opener = COMPRESSED.get(path.suffix)
        return count_word(opener(packed, "rb") if opener else packed, word, packed.tell, path.stat().st_size)


class StructureCounts:
    """Numbers of structures in many files. After the first of a kind, most are estimated by their sizes.

    A folder may have a hundred thousand runs, and every process that converts them needs the same numbers.
    """

    def __init__(self) -> None:
        self.files: dict[str, int] = defaultdict(int)
        self.structures: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, int] = defaultdict(int)

    def __call__(self, kind: str, path: Path, count: Callable[[], float]) -> float:
        """Return the number in a file, by `count` for the first files and then for the 128th, the 256th and so on."""
        self.files[kind] += 1
        number, size = self.files[kind], path.stat().st_size
        if number > FILES_TO_COUNT and number.bit_count() > 1:
            return max(1.0, size * self.structures[kind] / max(self.bytes[kind], 1))
        found = count()
        self.structures[kind] += found
        self.bytes[kind] += size
        return max(1.0, found)
