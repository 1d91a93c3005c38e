"""Unpacking of downloaded archives: beside the final name, and renamed only when all of it is on disk.

Nothing of an archive is trusted: only files and folders are taken from it, and none outside of its own folder.
"""

from __future__ import annotations

import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from gnnscale.contract import files
from gnnscale.contract.errors import BadFile
from workflow.config.published_files import PublishedFile
from workflow.fetch.download import Transfer

COPY_BLOCK_BYTES = 4 << 20
BROKEN = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError)


def unpack(file: PublishedFile, archive: Path, folder: Path, transfer: Transfer) -> None:
    """Unpack a verified archive into `folder` under the name that readers look for."""
    beside = folder / f".{file.becomes}.unpacking"
    remove(beside)  # of a run that was killed
    try:
        if file.name.endswith(".xz"):
            unpack_xz(archive, beside, transfer)
        else:
            unpack_tar(archive, beside, transfer)
    except BROKEN as error:
        raise BadFile(f"{file.name}: cannot be unpacked ({error}): it is cut off, or not an archive") from None
    os.replace(beside, folder / file.becomes)
    files.sync_directory(folder)


def unpack_xz(archive: Path, target: Path, transfer: Transfer) -> None:
    with lzma.open(archive) as source, open(target, "xb") as made:
        copy(source, made, transfer)
        made.flush()
        os.fsync(made.fileno())


def unpack_tar(archive: Path, target: Path, transfer: Transfer) -> None:
    target.mkdir()
    with tarfile.open(archive) as source:
        for member, path in members_inside(source, target):
            path.parent.mkdir(parents=True, exist_ok=True)
            stored = source.extractfile(member)
            assert stored is not None, "a member that is a file has content"
            with stored, open(path, "wb") as made:
                copy(stored, made, transfer)
    files.sync_tree(target)


def members_inside(source: tarfile.TarFile, target: Path) -> Iterator[tuple[tarfile.TarInfo, Path]]:
    """Yield the files of a tar with their paths; refuse links, devices, and paths that lead out of the folder."""
    for member in source:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
            raise BadFile(
                f"{member.name!r} in the archive is a link, a device or a path outside of it; nothing is unpacked"
            )
        if member.isfile():
            yield member, target / name


def copy(source: IO[bytes], made: IO[bytes], transfer: Transfer) -> None:
    while block := source.read(COPY_BLOCK_BYTES):
        made.write(block)
        transfer.raise_if_stopped()


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
