"""Recognition of a file by its first bytes, so that a file given to the wrong reader is told with the right one.

Light to import: readers call it at the door.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from gnnscale.data.formats.raw_files import Location

HEAD_BYTES = 512


class Kind(NamedTuple):
    """A kind of file: bytes at an offset by which it is known, and the dataset that reads it."""

    name: str
    magic: bytes
    advice: str
    offset: int = 0


KINDS = [
    Kind("HDF5", b"\x89HDF\r\n\x1a\n", "type dataset: pyanitools (ANI-1, ANI-2x, COMP6), ani1x, qm7x or spice"),
    Kind("ASE trajectory", b"- of UlmASE-Traj", "type dataset: ase_files"),
    Kind("SQLite database", b"SQLite format 3\0", "a database of ASE? Type dataset: ase_files"),
    Kind("LMDB", b"\xde\xc0\xef\xbe", "type dataset: ase_files (.aselmdb), oc20, oc22, omat24 or omol25", 16),
    Kind("NumPy array", b"\x93NUMPY", "type dataset: deepmd and give the folder with type.raw"),
    Kind("zip archive", b"PK\x03\x04", "unpack it; VASP's runs are read from it: type dataset: ase_files"),
    Kind("xz", b"\xfd7zXZ\0", "end its name in .xz, or decompress it"),
    Kind("gzip", b"\x1f\x8b", "end its name in .gz, or decompress it"),
    Kind("bzip2", b"BZh", "end its name in .bz2, or decompress it"),
    Kind("Zstandard", b"\x28\xb5\x2f\xfd", "decompress it: zstd -d FILE"),
    Kind("tar archive", b"ustar", "unpack it: tar xf FILE", 257),
    Kind(
        "old ASE trajectory",
        b"PickleTrajectory",
        "it holds pickles, which can execute anything; write it as .traj anew",
    ),
    *(
        Kind("pickle", bytes((128, n)), "it can execute anything and is not read; write its structures as extended XYZ")
        for n in (2, 3, 4, 5)
    ),
    Kind("pointer to a file in Git LFS", b"version https://git-lfs", "get the file itself: git lfs pull"),
    Kind("web page", b"<!doctype html", "the address of the download gave a page instead of the file"),
    Kind("web page", b"<html", "the address of the download gave a page instead of the file"),
    Kind("XML", b"<?xml", "a run of VASP? Type dataset: ase_files"),
    Kind("OUTCAR of VASP", b" vasp.", "type dataset: ase_files"),
    Kind("JSON", b"{", "type dataset: pymatgen_json (lists of structures), ase_files (ASE's), mptrj or alexandria"),
    Kind("JSON", b"[", "type dataset: pymatgen_json"),
]
EXTENDED_XYZ = Kind("extended XYZ", b"", "type dataset: extxyz")  # or plain XYZ: a line with the number of atoms


def recognise(path: Path) -> Kind | None:
    """Return the kind of a file; None for other bytes."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if head.split(b"\n", 1)[0].strip().isdigit():
        return EXTENDED_XYZ
    text = head.lstrip().lower()
    for kind in KINDS:
        if (head[kind.offset :] if kind.offset else head).startswith(kind.magic) or text.startswith(kind.magic):
            return kind
    return None


def describe_folder(folder: Path) -> str:
    """Return what the files in a folder are, by their first bytes, with the datasets that read them."""
    kinds = Counter(recognise(path) for path in islice(folder.rglob("*"), 1000) if path.is_file())
    known = [f"{count} of {kind.name} ({kind.advice})" for kind, count in kinds.most_common() if kind is not None]
    return ", ".join([*known[:3], *([f"{kinds[None]} of unknown formats"] if None in kinds else [])]) or "no file"


def check_kind(location: Location, wanted: str, *kinds: str) -> None:
    """Raise an error if the file is empty, or known to be none of these kinds; `wanted` names them for people."""
    if location.path.stat().st_size == 0:
        raise location.fault("the file is empty: 0 bytes")
    found = recognise(location.path)
    if found is not None and found.name not in kinds:
        raise location.fault(f"{wanted} was expected; its first bytes are those of: {found.name}", found.advice)
