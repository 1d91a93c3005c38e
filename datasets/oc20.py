"""OC20: adsorbates relaxing on surfaces, the S2EF task: 200 thousand to 134 million frames, 55 elements.

Chanussot et al., ACS Catal. 11, 6059 (2021). As published: pairs of N.extxyz.xz and N.txt.xz, unpacked from the tar;
or LMDB as made by fairchem's preprocessing. Slabs are marked periodic along all three vectors, and stay so: the vacuum
is 20 Angstrom or more. Forces are those of all atoms, including the fixed ones, which the benchmark does not count.
If the folders of train, val_id and val_ood are all below the given one, they are the split, and the folders of rattled
and md belong to training; the folders of test were published without labels and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.formats.ocp_splits import UNLABELLED, published_splits
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.data.formats.raw_files import Location, find_files, name_below
from gnnscale.schema import Record

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure
    from gnnscale.data.formats.extxyz import Frame
    from gnnscale.data.formats.plausible import PlausibilityCheck

PATTERNS = ("*.extxyz.xz", "*.extxyz", "*.lmdb")
FRAMES_PER_FILE = 5000  # in extended XYZ, as published
DOWNLOAD = "download and unpack a tar such as s2ef_train_200K.tar, named in fairchem's docs/catalysts/datasets/oc20.md"
STRUCTURES = {  # training subsets are nested
    "200K": 200_000,
    "2M": 2_000_000,
    "20M": 20_000_000,
    "all": 133_934_018,
    "val_id": 999_866,
    "val_ood_ads": 999_838,
    "val_ood_cat": 999_809,
    "val_ood_both": 999_944,
    "rattled": 16_677_031,
    "md": 38_315_405,
}


class Options(Record):
    """Options of this dataset."""

    raw: str = Field(description="folder with *.extxyz.xz and *.txt.xz of s2ef_train_200K.tar or another, or *.lmdb")
    limit: int | None = Field(
        None,
        ge=1,
        description="use only the first frames of each split, about this many in all; they are in random order",
    )
    energy: Literal["adsorption", "raw"] = Field(
        "adsorption", description="adsorption = that of the benchmark, less slab and gas; raw = VASP's total energy"
    )
    subset: Literal[
        "200K", "2M", "20M", "all", "val_id", "val_ood_ads", "val_ood_cat", "val_ood_both", "rattled", "md"
    ] = Field("200K", description="which subset was downloaded; for the card")


def input_files(options: Options) -> list[Path]:
    listed = split_of_files(options)
    return sorted([*listed, *(reference_file(path) for path in listed if path.suffix != ".lmdb")])


def split_of_files(options: Options) -> dict[Path, str | None]:
    return published_splits(options.raw, find_files(options.raw, PATTERNS, DOWNLOAD))


def reference_file(path: Path) -> Path:
    """Return 0.txt.xz for 0.extxyz.xz; it has the system, the frame, and the energy of slab and gas."""
    beside = path.with_name(path.name.replace(".extxyz", ".txt"))
    if not beside.is_file():
        raise FileNotFoundError(f"{beside}: missing beside {path.name}; {DOWNLOAD}")
    return beside


def card(options: Options) -> DatasetCard:
    return DatasetCard(
        name="oc20",
        title=f"OC20 S2EF {options.subset}: adsorbates on surfaces",
        theory=f"RPBE, VASP; {options.energy} energy",
        citation="Chanussot et al., ACS Catal. 11, 6059 (2021), 10.1021/acscatal.0c04525",
        licence="CC-BY 4.0",
        structures=min(STRUCTURES[options.subset], options.limit or STRUCTURES[options.subset]),
        atoms_per_structure=73.3,
        neighbours_per_atom=23.0,
        seconds_per_structure=0.0009,
    )


def pieces(options: Options) -> list[Piece]:
    """Return one piece per pair of files, or per thousand keys of an LMDB file."""
    from gnnscale.data.formats import ocp

    split_of_file = split_of_files(options)
    labelled = {path: split for path, split in split_of_file.items() if split != UNLABELLED}
    shares = ocp.share_limit(labelled, options.limit, estimate_frames)
    listed = [
        piece
        for split, share in shares.items()
        for piece in pieces_up_to(options.raw, [path for path in labelled if labelled[path] == split], share)
    ]
    return listed + ocp.pieces_by_keys(options.raw, [path for path in split_of_file if path not in labelled])


def pieces_up_to(raw: str, paths: list[Path], limit: int | None) -> Iterator[Piece]:
    """Yield the pieces of files, up to `limit` frames in total; no file after that is opened."""
    from gnnscale.data.formats import ocp

    left = limit
    for path in paths:
        if left == 0:
            return
        if path.suffix == ".lmdb":
            of_file = ocp.pieces_by_keys(raw, [path], left)
        elif left is None:
            of_file = [Piece(name_below(raw, path), FRAMES_PER_FILE, path)]
        else:
            last = min(left, count_frames(path))
            of_file = [Piece(name_below(raw, path), last, path, span=(0, last))]
        yield from of_file
        left = left and left - sum(piece.bounds[1] - piece.bounds[0] for piece in of_file)


def estimate_frames(path: Path) -> int:
    """Return the number of frames of a file, for extended XYZ as published without opening it."""
    from gnnscale.data.formats import ocp

    return ocp.count_keys(path) if path.suffix == ".lmdb" else FRAMES_PER_FILE


def count_frames(path: Path) -> int:
    """Count the lines of the small file beside it."""
    from gnnscale.data.formats import extxyz

    with Location(reference_file(path)) as beside, extxyz.open_text(beside.path) as lines:
        return sum(1 for _ in lines)


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.data.formats import ocp
    from gnnscale.data.formats.plausible import PlausibilityCheck

    split = split_of_files(options)[piece.path]
    if split == UNLABELLED:
        for _ in range(*piece.bounds):
            skip(UNLABELLED)
        return
    with Location(piece.path) as location:
        if piece.path.suffix == ".lmdb":
            check = PlausibilityCheck(location, "crystals" if options.energy == "raw" else "adsorption")
            read: Iterator[Structure] = map(check, ocp.read_structures(location, piece.bounds))
        else:
            check = PlausibilityCheck(location, "crystals")
            read = read_frames(location, check, options.energy == "adsorption")
            read = islice(read, piece.span[1]) if piece.span else read
        for structure in read:
            yield structure._replace(split=split)
        check.finish()


def read_frames(location: Location, check: PlausibilityCheck, adsorption: bool) -> Iterator[Structure]:
    """Yield frames: frame k of the extxyz is line k of the txt. The total energy is checked before any is subtracted."""
    from gnnscale.data.formats import extxyz

    with Location(reference_file(location.path)) as beside, extxyz.open_text(beside.path) as lines:
        for number, (frame, line) in enumerate(zip_longest(extxyz.read_frames(location), lines)):
            beside.where = f"line {number + 1}"
            if frame is None or line is None:
                short, long = (location, beside) if frame is None else (beside, location)
                raise short.fault(f"ends after {number} frames, but {long.path.name} goes on: one is truncated")
            try:
                system, name, reference = line.strip().split(",")
                reference = float(reference)
            except ValueError:
                raise beside.fault(f"system,frame,energy was expected, not {line.strip()[:60]!r}") from None
            if "energy" not in frame.info or "forces" not in frame.columns:
                raise location.fault(f"no energy or forces; there is {', '.join([*frame.info, *frame.columns])}")
            structure = check(to_structure(location, frame, system, f"{system} {name}"))
            yield structure._replace(energy=structure.energy - reference) if adsorption else structure


def to_structure(location: Location, frame: Frame, system: str, label: str) -> Structure:
    import numpy as np

    from gnnscale.atoms.structure import Structure
    from gnnscale.data.formats.label_numbers import to_numbers

    # `energy` is extrapolated to zero smearing and is what the benchmark uses; `free_energy`, up to 0.2 eV away, is what
    # the forces are exactly the derivative of
    (energy,) = to_numbers(location, "energy", frame.info["energy"], (1,))
    return Structure(
        numbers=frame.numbers,
        positions=frame.columns["pos"],
        cell=frame.cell,
        pbc=frame.pbc,
        energy=float(energy),
        forces=frame.columns["forces"],
        stress=np.full((3, 3), np.nan),
        group=system,
        label=label,
    )


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
