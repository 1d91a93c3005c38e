"""Files that ASE reads, each by the reader that its first bytes or the asked format say."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import PurePosixPath

from gnnscale.data.formats import ase_images, ase_rows, crystaljson, lmdbs, vasp_runs
from gnnscale.data.formats.extxyz import open_text
from gnnscale.data.formats.frame_counts import COMPRESSED
from gnnscale.data.formats.own_structures import OwnFrame
from gnnscale.data.formats.pieces import Piece, SkipStructure, pieces_by_range
from gnnscale.data.formats.raw_files import Location, name_below
from gnnscale.data.formats.recognise import check_kind, recognise
from gnnscale.data.formats.structure_counts import StructureCounts
from gnnscale.data.formats.vasp_names import is_outcar, is_vasprun

COUNTED = {  # kinds with an index -> how many structures there are, and what they are called
    "ASE trajectory": (ase_images.count_images, "images"),
    "SQLite database": (ase_rows.count_rows, "rows"),
    "LMDB": (lmdbs.count_rows, "rows"),
}
READERS = {
    "ASE trajectory": ase_images.read_trajectory,
    "SQLite database": ase_rows.read_database,
    "LMDB": ase_rows.read_lmdb,
}
RUNS = ("XML", "OUTCAR of VASP", "zip archive")
BYTES_PER_STRUCTURE = 30_000  # of a program's output, roughly


def kind_of(location: Location, asked: str | None) -> str:
    """Return the kind of the file, or raise an error with what could be typed."""
    name = location.path.name
    if asked is not None:
        check_kind(
            location, f"text in the format {asked}", "XML", "OUTCAR of VASP", "extended XYZ", "xz", "gzip", "bzip2"
        )
        return asked
    if location.path.suffix in COMPRESSED and (is_vasprun(name) or is_outcar(name)):
        return "XML" if is_vasprun(name) else "OUTCAR of VASP"
    check_kind(location, "a file that ASE reads", *COUNTED, *RUNS, "JSON")
    found = recognise(location.path)
    if found is None:
        raise location.fault(
            "by its first bytes this is no file that ASE is asked to read",
            "output of a program: set the option format to ASE's name of it, such as espresso-out",
        )
    return found.name


def pieces_of_file(
    raw: str, location: Location, asked: str | None, limit: int | None, counts: StructureCounts
) -> list[Piece]:
    kind, path = kind_of(location, asked), location.path
    name = name_below(raw, path)
    if kind in COUNTED:
        count_all, what = COUNTED[kind]
        count = count_all(location)
        return pieces_by_range(raw, path, min(count, limit or count), what)
    if kind == "zip archive":
        return pieces_of_archive(name, location, limit)
    found = counts(kind, path, partial(count_structures, location, kind))
    return [Piece(name, min(found, limit or found), path)]


def pieces_of_archive(name: str, location: Location, limit: int | None) -> list[Piece]:
    """Return a piece for each run of VASP in a zip archive."""
    listed = vasp_runs.list_members(location.path)
    if not listed:
        raise location.fault("no vasprun.xml or OUTCAR in this zip archive", "unpack it, and give the folder")
    counts = [max(1.0, vasp_runs.count_steps(location, run)) for run in listed]
    return [
        Piece(f"{name}: {run.member}", min(count, limit or count), location.path, run.member)
        for run, count in zip(listed, counts)
    ]


def count_structures(location: Location, kind: str) -> float:
    """Return the number of structures in a file without an index, estimated if it is long."""
    if kind == "JSON":
        return crystaljson.count_in(location, b'"positions"')
    if kind in RUNS:
        return vasp_runs.count_steps(location, vasp_runs.Run("", kind == "XML"))
    return location.path.stat().st_size / BYTES_PER_STRUCTURE


def read_frames(
    raw: str, location: Location, piece: Piece, asked: str | None, limit: int | None, skip: SkipStructure
) -> Iterator[tuple[str, str, OwnFrame]]:
    """Yield (label, group, frame): the steps of a trajectory or of a run are a group, and each row of a database."""
    kind, file = kind_of(location, asked), name_below(raw, location.path)
    steps = None if kind in ("SQLite database", "LMDB", "JSON") else f"{file} {piece.key}".rstrip()
    if kind in READERS:
        found = READERS[kind](location, piece.bounds)
    elif kind == "JSON":
        found = ase_rows.read_json(location, limit)
    elif kind in RUNS:
        run = vasp_runs.Run(piece.key, is_vasprun(PurePosixPath(piece.key).name) if piece.key else kind == "XML")
        found = vasp_runs.read_run(location, run, limit, skip)
    else:
        found = read_text(location, kind, limit)
    for where, frame in found:
        yield f"{file} {where}", steps or f"{file} {where}", frame


def read_text(location: Location, kind: str, limit: int | None) -> Iterator[tuple[str, OwnFrame]]:
    with open_text(location.path) as file:
        for number, frame in enumerate(islice(ase_images.image_frames(file, kind), limit)):
            location.where = f"structure {number}"
            yield location.where, frame
