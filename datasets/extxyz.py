"""Your own structures in extended XYZ: one file or a folder of them, plain or in xz, gzip or bzip2."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from gnnscale.data.formats.own_data import (
    NOT_READ,
    LabelKeys,
    find_own_files,
    list_pieces,
    own_data_card,
    skip_unread_files,
)
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.data.formats.raw_files import OWN_FILE, Location
from gnnscale.data.formats.source_size import SourceSize, measure_files, measure_xyz

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure
    from gnnscale.contract.dataset_card import DatasetCard

PATTERNS = tuple(f"*.{kind}{packed}" for kind in ("xyz", "extxyz") for packed in ("", ".xz", ".gz", ".bz2"))


class Options(LabelKeys):
    """Options of this dataset."""

    raw: str = Field(description="an extended XYZ file (.xyz, .extxyz, also .xz, .gz, .bz2), or a folder of them")
    limit: int | None = Field(None, ge=1, description="use only the first frames of each file, at most this many")


def input_files(options: Options) -> list[Path]:
    advice = "give the path of an extended XYZ file or of a folder of them"
    return find_own_files(options.raw, options.isolated_atoms, PATTERNS, advice)


def card(options: Options) -> DatasetCard:
    def count() -> SourceSize:
        return measure_files(input_files(options), options.limit, measure_xyz)

    return own_data_card("extxyz", options, 30.0, 0.0006, count)


def pieces(options: Options) -> list[Piece]:
    """Return each file, or ranges of its bytes if it is large, not compressed and wanted as a whole."""
    from gnnscale.data.formats import extxyz
    from gnnscale.data.formats.structure_counts import StructureCounts

    counts = StructureCounts()

    def list_of_file(location: Location) -> list[Piece]:
        return extxyz.pieces_by_bytes(options.raw, location, options.limit, counts)

    return list_pieces(options, input_files(options), list_of_file)


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.data.formats import extxyz
    from gnnscale.data.formats.own_structures import to_structures

    if piece.key == NOT_READ:
        skip_unread_files(options.raw, input_files(options), skip)
        return
    with Location(piece.path, OWN_FILE) as location:
        numbered = enumerate(islice(extxyz.read_frames(location, piece.span), options.limit))
        labelled = ((f"{piece.name} frame {number}", frame.to_own_frame()) for number, frame in numbered)
        frames = ((label, label, frame) for label, frame in labelled)
        yield from to_structures(options, location, piece, frames)


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
