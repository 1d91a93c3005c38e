"""Numbers of structures and atoms in the user's own files, for the planner: counted in bounded parts of them.

Light to import: the planner runs on a login node, and needs the numbers before anything is read.
"""

from __future__ import annotations

import ast
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from gnnscale.data.formats.frame_counts import count_frames
from gnnscale.data.formats.recognise import recognise
from gnnscale.data.formats.structure_counts import StructureCounts, count_words

USUAL_ATOMS = 30.0  # per structure, where the files do not tell at once
MOLECULE_ATOMS, BYTES_PER_ATOM = 15.0, 12  # of a conformation in single precision, with its labels if it is compressed
TRAJECTORY_ITEMS = 32  # byte at which an ASE trajectory has its number of images


class SourceSize(NamedTuple):
    """The expected size of a source."""

    structures: float = 1000.0
    atoms: float = USUAL_ATOMS  # per structure


def measure_files(listed: list[Path], limit: int | None, measure: Callable[[Path], SourceSize]) -> SourceSize:
    """Return the size of all files; of very many a few are measured. `limit` holds for each file."""
    counts, sizes, structures = StructureCounts(), [], 0.0

    def note(path: Path) -> float:
        sizes.append(measure_once(measure, path, path.stat().st_size, path.stat().st_mtime_ns))
        return sizes[-1].structures

    for path in listed:
        found = counts(path.suffix, path, partial(note, path))
        structures += min(found, limit or found)
    weight = sum(size.structures for size in sizes)
    atoms = sum(size.structures * size.atoms for size in sizes)
    return SourceSize(structures, atoms / weight if weight else USUAL_ATOMS)


@lru_cache(maxsize=4096)
def measure_once(measure: Callable[[Path], SourceSize], path: Path, size: int, changed: int) -> SourceSize:
    """Measure a file that has this size and time of change; a plan asks for it more than once."""
    return measure(path)


def measure_xyz(path: Path) -> SourceSize:
    counted = count_frames(path)
    return SourceSize(counted.frames, counted.atoms / counted.frames if counted.frames else USUAL_ATOMS)


def measure_list(path: Path) -> SourceSize:
    """Measure a JSON list of pymatgen's structures."""
    structures = count_words(path, b'"sites"')
    return SourceSize(structures, count_words(path, b'"species"') / structures if structures else USUAL_ATOMS)


def measure_hdf5(path: Path) -> SourceSize:
    """Estimate conformations of small molecules by bytes: to open HDF5, the planner would need NumPy."""
    return SourceSize(path.stat().st_size / (BYTES_PER_ATOM * MOLECULE_ATOMS), MOLECULE_ATOMS)


def measure_array(path: Path) -> SourceSize:
    """Read from the header of an array of NumPy how many frames of how many coordinates it has."""
    with open(path, "rb") as file:
        head = file.read(12)
        length = struct.unpack("<H" if head[6] == 1 else "<I", head[8 : 10 if head[6] == 1 else 12])[0]
        file.seek(10 if head[6] == 1 else 12)
        frames, *others = ast.literal_eval(file.read(length).decode())["shape"]
    return SourceSize(frames, others[0] / 3 if others else USUAL_ATOMS)


def measure_ase(path: Path) -> SourceSize:
    """Measure a file that ASE reads: by what it stores of its length, or by counting."""
    found = recognise(path)
    kind = found.name if found else ""
    if kind == "ASE trajectory":
        with open(path, "rb") as file:
            file.seek(TRAJECTORY_ITEMS)
            return SourceSize(struct.unpack("<q", file.read(8))[0])
    if kind == "SQLite database":
        return measure_database(path)
    word = {"JSON": b'"positions"', "OUTCAR of VASP": b"TOTAL-FORCE"}.get(kind, b"<calculation>")
    return SourceSize(max(1.0, count_words(path, word)))


def measure_database(path: Path) -> SourceSize:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            (count,) = connection.execute("SELECT COUNT(*) FROM systems").fetchone()
            (atoms,) = connection.execute("SELECT AVG(natoms) FROM (SELECT natoms FROM systems LIMIT 100)").fetchone()
    except sqlite3.Error:  # told when it is read
        return SourceSize()
    return SourceSize(count, atoms or USUAL_ATOMS)
