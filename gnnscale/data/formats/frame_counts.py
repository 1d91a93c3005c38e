"""Frames and atoms in XYZ files: counted, or estimated from samples of a long file.

Light to import: the planner counts with it, on a login node.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

COMPRESSED: dict[str, Callable[..., IO[Any]]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
BYTES_TO_COUNT = 1 << 25  # frames of a longer plain file are counted in samples of it
COMPRESSED_BYTES_TO_COUNT = 1 << 21  # at the beginning of a compressed file; up to 0.5 s
SAMPLES, SAMPLE_BYTES = 32, 1 << 20  # of a long file
MAX_LINE_BYTES = 1 << 16  # of a line before the start of a range; longer ones hold no number of atoms


class FrameCount(NamedTuple):
    """Frames that begin in a range of bytes, their atoms and their bytes; estimates are fractions."""

    frames: float = 0
    atoms: float = 0
    bytes: float = 0

    def scaled(self, factor: float) -> FrameCount:
        return FrameCount(self.frames * factor, self.atoms * factor, self.bytes * factor)


def count_frames(path: Path) -> FrameCount:
    """Count a whole file."""
    if path.suffix in COMPRESSED:
        return count_compressed(path)
    length = path.stat().st_size
    step = max(SAMPLE_BYTES, -(-length // SAMPLES))
    spans = [(start, min(length, start + step)) for start in range(0, length, step)]
    return add_counts(count_spans(path, spans))


def add_counts(counts: list[FrameCount]) -> FrameCount:
    return FrameCount(*map(sum, zip(*counts))) if counts else FrameCount()


def count_spans(path: Path, spans: list[tuple[int, int]]) -> list[FrameCount]:
    """Count the frames in each range of bytes of a plain file: all, or by their density in samples of a long file."""
    counts, every = [], -(-len(spans) // SAMPLES)
    with open(path, "rb") as file:
        if spans and spans[-1][1] <= BYTES_TO_COUNT:
            return [count_from(file, find_frame(file, start) if start else 0, end) for start, end in spans]
        for number, (start, end) in enumerate(spans):
            if number % every == 0:
                first = find_frame(file, start) if start else 0
                sample = count_from(file, first, min(end, first + SAMPLE_BYTES))
            counts.append(sample.scaled((end - start) / max(sample.bytes, 1)))
    return counts


def count_from(file: IO[bytes], start: int, end: int) -> FrameCount:
    """Count the frames that begin between two bytes."""
    file.seek(start)
    frames, atoms, offset = 0, 0, start
    while offset < end and (head := file.readline()):
        offset += len(head)
        if head.strip().isdigit():
            frames, atoms = frames + 1, atoms + int(head)
            offset += len(file.readline()) + sum(map(len, islice(file, int(head))))
    return FrameCount(frames, atoms, offset - start)


def count_compressed(path: Path) -> FrameCount:
    """Count the frames in the first bytes of a compressed file, and take what follows to be like them."""
    frames, atoms = 0, 0
    with open(path, "rb") as packed, COMPRESSED[path.suffix](packed, "rb") as file:
        while packed.tell() < COMPRESSED_BYTES_TO_COUNT and (head := file.readline()):
            if head.strip().isdigit():
                frames, atoms = frames + 1, atoms + int(head)
                for _ in islice(file, 1 + int(head)):
                    pass
        return FrameCount(frames, atoms, packed.tell()).scaled(path.stat().st_size / max(packed.tell(), 1))


def find_frame(file: IO[bytes], start: int) -> int:
    """Return the byte at which the first frame begins, at `start` or later.

    A comment may be a number too, but then the line before it is a number, and the line before a number of atoms is none.
    """
    file.seek(max(0, start - MAX_LINE_BYTES))
    before = file.read(min(start, MAX_LINE_BYTES))
    offset = start
    if not before.endswith(b"\n"):  # in the middle of a line
        file.seek(start)
        rest = file.readline()
        before, offset = before + rest, start + len(rest)
    last = before[:-1].rsplit(b"\n", 1)[-1]
    while True:
        file.seek(offset)
        head = file.readline()
        if not head:
            return offset
        if head.strip().isdigit() and not last.strip().isdigit() and is_frame(file, int(head)):
            return offset
        offset, last = offset + len(head), head


def is_frame(file: IO[bytes], atoms: int) -> bool:
    """Tell whether a frame of `atoms` atoms follows: a comment, the rows, then the end or a number again."""
    file.readline()
    if not all(len(row.split()) > 3 for row in islice(file, atoms)):
        return False
    after = file.readline().strip()
    return not after or after.isdigit()
