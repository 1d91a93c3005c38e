"""MPtrj: 1.6 million steps of the Materials Project's relaxations, 89 elements, with stress.

Deng et al., Nat. Mach. Intell. 5, 1031 (2023). One JSON file of 11 GB, which is streamed material by material.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.data.formats.raw_files import Location, find_files, name_below
from gnnscale.schema import Record

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure

MATERIALS, FRAMES, BYTES_PER_FRAME = 145_923, 1_580_395, 7_000
DOWNLOAD = "download MPtrj_2022.9_full.json of figshare 23713842"


class Options(Record):
    """Options of this dataset."""

    raw: str = Field(description="MPtrj_2022.9_full.json (figshare 23713842, 11 GB), or the folder with it")
    limit: int | None = Field(None, ge=1, description="use only the first materials, at most this many")
    energy: Literal["uncorrected", "corrected"] = Field(
        "uncorrected", description="VASP's energy, which belongs to the forces, or that with the MP2020 corrections"
    )


def input_files(options: Options) -> list[Path]:
    return find_files(options.raw, ("*.json", "*.json.gz", "*.json.bz2"), DOWNLOAD)


def card(options: Options) -> DatasetCard:
    corrected = ", MP2020 corrections" if options.energy == "corrected" else ""
    return DatasetCard(
        name="mptrj",
        title="MPtrj: relaxations of inorganic crystals",
        theory=f"PBE and PBE+U, VASP{corrected}",
        citation="Deng et al., Nat. Mach. Intell. 5, 1031 (2023), 10.1038/s42256-023-00716-3",
        licence="MIT; the Materials Project's data CC-BY 4.0",
        structures=round(FRAMES * min(1, (options.limit or MATERIALS) / MATERIALS)),
        atoms_per_structure=31.2,
        neighbours_per_atom=35.9,
        seconds_per_structure=0.0006,
    )


def pieces(options: Options) -> list[Piece]:
    """Return each file as one piece: JSON can only be read from its beginning."""
    return [
        Piece(name_below(options.raw, path), path.stat().st_size / BYTES_PER_FRAME, path)
        for path in input_files(options)
    ]


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.data.formats import crystaljson
    from gnnscale.data.formats.plausible import PlausibilityCheck

    with Location(piece.path) as location:
        check = PlausibilityCheck(location, "crystals")
        for material, frames in islice(crystaljson.read_members(location), options.limit):
            if not isinstance(frames, dict):
                raise location.fault("frames by name were expected: this is not the layout of MPtrj")
            for name, frame in frames.items():
                location.where = f"{material} {name}"
                try:
                    yield check(to_structure(options, location, material, name, frame))
                except crystaljson.DisorderedSite:
                    skip("partial occupancy")
        check.finish()


def to_structure(options: Options, location: Location, material: str, name: str, frame: dict) -> Structure:
    from gnnscale.atoms import units
    from gnnscale.atoms.structure import Structure
    from gnnscale.data.formats import crystaljson

    key = f"{options.energy}_total_energy"
    lacking = [wanted for wanted in ("structure", key, "force", "stress") if wanted not in frame]
    if lacking:
        raise location.fault(f"{', '.join(lacking)} is missing; there is {', '.join(frame)[:300]}")
    made = crystaljson.to_crystal(location, frame["structure"])
    stress = crystaljson.to_array(location, frame["stress"], (3, 3), "stress")
    return Structure(
        **made._asdict(),
        energy=float("nan") if frame[key] is None else float(frame[key]),
        forces=crystaljson.to_array(location, frame["force"], made.positions.shape, "force"),
        stress=-units.KBAR * stress,  # VASP: kbar, positive in compression
        group=material,
        label=f"{material} {name}",
    )


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
