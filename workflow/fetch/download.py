"""The download of one file: in ranges side by side, continued where it stopped, checked, and renamed only when it is whole."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.errors import BadFile, UserError
from workflow.config.published_files import PublishedFile
from workflow.fetch import http_ranges
from workflow.fetch.http_ranges import FileChanged, NoNetwork, RemoteFile, Transient
from workflow.fetch.partial_file import PartialFile

CONNECTIONS = 4  # for the ranges of one file
TRIES = 6  # without a byte of progress
FIRST_WAIT_SECONDS = 1.0  # before the second try; each further wait is twice as long
HASH_BLOCK_BYTES = 4 << 20


class Stopped(Exception):
    """The end of a download that another thread or Ctrl-C has asked for."""


class Transfer:
    """The bytes that all threads have received, and the wish that they stop."""

    def __init__(self) -> None:
        self.lock, self.stop, self.received, self.expected = threading.Lock(), threading.Event(), 0, 0

    def expect(self, count: int) -> None:
        with self.lock:
            self.expected += count

    def receive(self, count: int) -> None:
        with self.lock:
            self.received += count

    @property
    def is_complete(self) -> bool:
        return 0 < self.expected <= self.received

    def raise_if_stopped(self) -> None:
        if self.stop.is_set():
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Wait, but no longer than until a stop."""
        self.stop.wait(seconds)
        self.raise_if_stopped()


class Patience:
    """The tries of one request or range, with longer and longer waits, until too many fail without progress."""

    def __init__(self, url: str, transfer: Transfer):
        self.url, self.transfer, self.failures = url, transfer, 0

    def renew(self) -> None:
        self.failures = 0

    def wait_after(self, failure: object) -> None:
        self.failures += 1
        if self.failures >= TRIES:
            raise UserError(
                f"{self.url}: {failure}; given up after {TRIES} tries", "the same command continues where it stopped"
            )
        self.transfer.wait(FIRST_WAIT_SECONDS * 2 ** (self.failures - 1))


@contextmanager
def downloaded(file: PublishedFile, folder: Path, page: str, transfer: Transfer) -> Iterator[Path]:
    """Download a file, check it, and hand over the path where it lies until it is used, under a name no reader looks for."""
    remote = ask_patiently(file, page, transfer)
    part = PartialFile(folder / file.name, remote)
    with part:
        if remote.has_ranges:
            receive_ranges(part, remote, page, transfer)
        else:
            receive_whole(part, remote, page, transfer)
    try:
        check_content(file, part.data, page, transfer)
    except UserError:
        part.discard()
        raise
    yield part.data
    part.discard()


def download(file: PublishedFile, folder: Path, page: str, transfer: Transfer) -> None:
    """Download a file that is read as it is."""
    with downloaded(file, folder, page, transfer) as path:
        os.replace(path, folder / file.name)
        files.sync_directory(folder)


def ask_patiently(file: PublishedFile, page: str, transfer: Transfer) -> RemoteFile:
    """Ask for the size of a file, and refuse one that is not as published before it is downloaded."""
    patience = Patience(file.url, transfer)
    while True:
        try:
            remote = http_ranges.ask(file.url, page)
            break
        except Transient as failure:
            patience.wait_after(failure)
    if file.size is not None and remote.size is not None and remote.size != file.size:
        raise BadFile(
            f"{file.url}: the server has a file of {remote.size:,} bytes; {file.size:,} are published",
            f"it is another version or another file; see {page}",
        )
    if remote.size is None and not file.md5:
        raise BadFile(
            f"{file.url}: the server does not tell the size and no checksum is published: nothing shows when the file is whole",
            f"get it by hand, and compare it with {page}",
        )
    # Servers behind one address may tag the same file differently; a checksum tells a change better than a tag.
    return remote._replace(tag="") if file.md5 else remote


# ------------------------------------------------------------------------------------------------------------ receiving
def receive_ranges(part: PartialFile, remote: RemoteFile, page: str, transfer: Transfer) -> None:
    """Receive all ranges that are not on disk, a few at a time."""
    missing = part.missing_ranges()
    transfer.expect(sum(end - begin for begin, end in missing))
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        waiting = [pool.submit(receive_range, part, remote, *each, page, transfer) for each in missing]
        try:
            for each in waiting:
                each.result()
        except FileChanged as change:
            part.discard()
            raise BadFile(f"{remote.url}: {change}", "the same command begins it anew") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def receive_range(part: PartialFile, remote: RemoteFile, begin: int, end: int, page: str, transfer: Transfer) -> None:
    """Receive one range; after a cut connection, continue with the next byte."""
    done, patience = begin, Patience(remote.url, transfer)
    while done < end:
        transfer.raise_if_stopped()
        failure: object = "the connection was closed too early"
        try:
            for block in http_ranges.read_range(remote, done, end, page):
                part.write(block, done)
                done += len(block)
                transfer.receive(len(block))
                transfer.raise_if_stopped()
                patience.renew()
        except (Transient, NoNetwork) as error:  # the network was there when the download began
            failure = error
        if done < end:
            patience.wait_after(f"{failure} (at byte {done:,} of {remote.size:,})")
    part.finish_range(begin)


def receive_whole(part: PartialFile, remote: RemoteFile, page: str, transfer: Transfer) -> None:
    """Receive a file from a server that knows no ranges; after a cut connection, begin anew."""
    transfer.expect(remote.size or 0)
    patience = Patience(remote.url, transfer)
    while True:
        done = 0
        part.truncate()
        failure: object = "the connection was closed too early"
        try:
            for block in http_ranges.read_whole(remote, page):
                part.write(block, done)
                done += len(block)
                transfer.receive(len(block))
                transfer.raise_if_stopped()
            if remote.size in (None, done):
                return part.sync()
        except (Transient, NoNetwork) as error:
            failure = error
        transfer.receive(-done)
        patience.wait_after(f"{failure} (after {done:,} bytes; this server cannot continue, so it begins anew)")


# ------------------------------------------------------------------------------------------------------------- checking
def check_content(file: PublishedFile, path: Path, page: str, transfer: Transfer) -> None:
    """Raise unless the file has the published size and checksum; without these, unless it is no web page at least."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        raise BadFile(f"{path}: {size:,} bytes; {file.size:,} are published", f"see {page}")
    if file.md5:
        if (found := digest(path, transfer)) != file.md5:
            raise BadFile(
                f"{file.name} of {file.url}: its checksum (md5) is {found}; {file.md5} is published",
                f"if that happens again, the address has another file: see {page}",
            )
    elif size < http_ranges.BLOCK_BYTES and http_ranges.is_web_page(path.read_bytes()):
        raise BadFile(f"{file.url}: the server sent a web page in place of the file", f"see {page}")


def digest(path: Path, transfer: Transfer) -> str:
    """Return the md5 of a file; it guards against accidents, and is what the publishers give."""
    made = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            made.update(block)
            transfer.raise_if_stopped()
    return made.hexdigest()
