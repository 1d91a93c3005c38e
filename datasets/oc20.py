"""OC20: adsorbates relaxing on surfaces, the S2EF task: 200 thousand to 134 million frames, 55 elements.

Chanussot et al., ACS Catal. 11, 6059 (2021). As published: pairs of N.extxyz.xz and N.txt.xz, unpacked from the tar;
or LMDB as made by fairchem's preprocessing. Slabs are marked periodic along all three vectors, and kept so: the vacuum
is 20 Angstrom or more. Forces are those of all atoms, also of the fixed ones, which the benchmark does not count.
Where folders of train, val_id and val_ood are all below the one that is given, they are the split, and those of rattled
and md are of its training part; what is in those of test was published without labels, and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.formats.pieces import UNLABELLED, Place, Unit, below, found, split_folders
from gnnscale.schema import Spec

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure
    from gnnscale.data.formats.plausible import Watch

PATTERNS = ("*.extxyz.xz", "*.extxyz", "*.lmdb")
FRAMES = 5000  # of an extended XYZ file, as published
DOWNLOAD = "download and unpack a tar such as s2ef_train_200K.tar, named in fairchem's docs/catalysts/datasets/oc20.md"
COUNTS = {  # training subsets are nested
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


class Options(Spec):
    """What can be asked of this dataset."""

    raw: str = Field(description="folder with *.extxyz.xz and *.txt.xz of s2ef_train_200K.tar or another, or *.lmdb")
    limit: int | None = Field(None, ge=1, description="only the first so many frames; they are in random order")
    energy: Literal["adsorption", "raw"] = Field(
        "adsorption", description="the benchmark's, less the energies of slab and gas, or VASP's total energy"
    )
    subset: Literal[
        "200K", "2M", "20M", "all", "val_id", "val_ood_ads", "val_ood_cat", "val_ood_both", "rattled", "md"
    ] = Field("200K", description="which was downloaded; for the card")


def inputs(options: Options) -> list[Path]:
    listed = splits(options)
    return sorted([*listed, *(references(path) for path in listed if path.suffix != ".lmdb")])


def splits(options: Options) -> dict[Path, str]:
    return split_folders(options.raw, found(options.raw, PATTERNS, DOWNLOAD))


def references(path: Path) -> Path:
    """0.txt.xz of 0.extxyz.xz: which system, which frame, and the energy of slab and gas."""
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
        structures=min(COUNTS[options.subset], options.limit or COUNTS[options.subset]),
        atoms_per_structure=73.3,
        neighbours_per_atom=23.0,
        seconds_per_structure=0.0009,
    )


def units(options: Options) -> list[Unit]:
    """Every pair of files, every thousand keys."""
    from gnnscale.data.formats import ocp

    listed, left, told = [], options.limit, splits(options)
    for path in (path for path in told if told[path] != UNLABELLED):
        if left == 0:
            break
        if path.suffix == ".lmdb":
            mine = ocp.units(options.raw, [path], left)
        elif left is None:
            mine = [Unit(below(options.raw, path), FRAMES, path)]
        else:
            last = min(left, count_frames(path))
            mine = [Unit(below(options.raw, path), last, path, span=(0, last))]
        listed += mine
        left = left and left - sum(unit.span[1] - unit.span[0] for unit in mine)
    return listed + ocp.units(options.raw, [path for path in told if told[path] == UNLABELLED])


def count_frames(path: Path) -> int:
    """By the lines of the small file beside it."""
    from gnnscale.data.formats import extxyz

    with Place(references(path)) as beside, extxyz.opened(beside.path) as lines:
        return sum(1 for _ in lines)


def structures(options: Options, unit: Unit, skip: Callable[[str], None]) -> Iterator[Structure]:
    from gnnscale.data.formats import ocp, plausible

    split = splits(options)[unit.path]
    if split == UNLABELLED:
        for _ in range(*unit.span):
            skip(UNLABELLED)
        return
    with Place(unit.path) as place:
        if unit.path.suffix == ".lmdb":
            watch = plausible.Watch(place, "crystals" if options.energy == "raw" else "adsorption")
            read = map(watch, ocp.graphs(place, unit.span))
        else:
            watch = plausible.Watch(place, "crystals")
            read = frames(place, watch, options.energy == "adsorption")
            read = islice(read, unit.span[1]) if unit.span else read
        for structure in read:
            yield structure._replace(split=split)
        watch.done()


def frames(place: Place, watch: Watch, adsorption: bool) -> Iterator[Structure]:
    """Frame k of the extxyz is line k of the txt. The total energy is looked at before anything is taken off."""
    from gnnscale.data.formats import extxyz

    with Place(references(place.path)) as beside, extxyz.opened(beside.path) as lines:
        for number, (frame, line) in enumerate(zip_longest(extxyz.frames(place), lines)):
            beside.where = f"line {number + 1}"
            if frame is None or line is None:
                short, long = (place, beside) if frame is None else (beside, place)
                raise short.fault(f"ends after {number} frames, but {long.path.name} goes on: one is truncated")
            try:
                system, name, reference = line.strip().split(",")
                reference = float(reference)
            except ValueError:
                raise beside.fault(f"system,frame,energy was expected, not {line.strip()[:60]!r}") from None
            if "energy" not in frame.info or "forces" not in frame.columns:
                raise place.fault(f"no energy or forces; there is {', '.join([*frame.info, *frame.columns])}")
            structure = watch(labelled(place, frame, system, f"{system} {name}"))
            yield structure._replace(energy=structure.energy - reference) if adsorption else structure


def labelled(place: Place, frame: object, system: str, label: str) -> Structure:
    import numpy as np

    from gnnscale.atoms.structure import Structure
    from gnnscale.data.formats import extxyz

    # `energy` is extrapolated to zero smearing and is what the benchmark uses; `free_energy`, up to 0.2 eV away, is what
    # the forces are exactly the derivative of
    (energy,) = extxyz.numbers_in(place, "energy", frame.info["energy"], (1,))
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
