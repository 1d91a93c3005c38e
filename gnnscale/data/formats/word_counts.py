"""Counts of structures in files without an index: how often a word occurs."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

BYTES_TO_COUNT = 1 << 26  # of a longer file the first bytes are counted, which takes 0.1 s


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
