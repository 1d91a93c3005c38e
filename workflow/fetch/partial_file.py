"""A file that is being downloaded: its bytes, and the record of the ranges that are safely on disk.

Both lie beside the final name, as `.NAME.part` and `.NAME.ranges`, which no reader looks for. A range is recorded after its
bytes are on disk, so that the record is true whenever the process or the machine stops.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import TracebackType

from gnnscale.contract import files
from workflow.fetch.http_ranges import RemoteFile

RANGE_BYTES = 32 << 20  # what a killed download loses of each connection at most


class PartialFile:
    """The part of a file that is on disk. As a context it holds the file open."""

    def __init__(self, final: Path, remote: RemoteFile):
        self.data, self.record = final.with_name(f".{final.name}.part"), final.with_name(f".{final.name}.ranges")
        self.size, self.lock = remote.size, threading.Lock()
        self.head = {"size": remote.size, "tag": remote.tag, "range": RANGE_BYTES}
        self.finished = self.read_record()
        if not self.finished:
            self.discard()

    def __enter__(self) -> PartialFile:
        self.handle = os.open(self.data, os.O_RDWR | os.O_CREAT, 0o666)
        lines = [json.dumps(self.head), *map(str, sorted(self.finished))]
        files.write(self.record, "".join(line + "\n" for line in lines))  # anew, as its last line may be torn
        self.log = open(self.record, "a")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.log.close()
        os.close(self.handle)

    def read_record(self) -> set[int]:
        """Return the beginnings of the ranges on disk; none if they are of another file, or not on disk any more."""
        try:
            head, *lines = self.record.read_text().split("\n")[:-1]  # without a last line that was not ended
            if json.loads(head) != self.head or not self.data.exists():
                return set()
            return {int(line) for line in lines}
        except (OSError, ValueError):
            return set()

    def missing_ranges(self) -> list[tuple[int, int]]:
        """List (begin, end) of the ranges that are not on disk."""
        assert self.size is not None, "a server with ranges tells the size"
        begins = range(0, self.size, RANGE_BYTES)
        return [(begin, min(begin + RANGE_BYTES, self.size)) for begin in begins if begin not in self.finished]

    def write(self, block: bytes, offset: int) -> None:
        """Write all of a block, for which the system may need several calls."""
        view = memoryview(block)
        while view:
            written = os.pwrite(self.handle, view, offset)
            view, offset = view[written:], offset + written

    def finish_range(self, begin: int) -> None:
        os.fdatasync(self.handle)
        with self.lock:
            self.finished.add(begin)
            self.log.write(f"{begin}\n")
            self.log.flush()
            os.fdatasync(self.log.fileno())

    def truncate(self) -> None:
        """Begin anew, where a server cannot continue."""
        os.ftruncate(self.handle, 0)

    def sync(self) -> None:
        os.fsync(self.handle)

    def discard(self) -> None:
        self.record.unlink(missing_ok=True)
        self.data.unlink(missing_ok=True)
