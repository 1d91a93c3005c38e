"""Alexandria: millions of inorganic crystals, relaxed, or all steps of their relaxations; 89 elements.

Schmidt et al., Adv. Mater. 35, 2210788 (2023) and Mater. Today Phys. 48, 101560 (2024). JSON in bzip2, in two layouts:
alexandria_NNN.json.bz2 with relaxed crystals (a list `entries`) and geo_opt_paths with trajectories by material.
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

STRUCTURES = {"relaxed": 4_489_295, "trajectories": 30_500_000}
STRUCTURES_PER_MATERIAL = {"relaxed": 1, "trajectories": 10}
BYTES_PER_STRUCTURE = 400  # in bzip2


class Options(Record):
    """Options of this dataset."""

    raw: str = Field(description="folder with alexandria_*.json.bz2, relaxed or geo_opt_paths, or one of these files")
    limit: int | None = Field(None, ge=1, description="use only the first materials of each file, at most this many")
    content: Literal["relaxed", "trajectories"] = Field(
        "relaxed", description="which content was downloaded; used for the card only, the files are recognised"
    )


def input_files(options: Options) -> list[Path]:
    download = "download alexandria_000.json.bz2 and following of alexandria.icams.rub.de, PBE"
    return find_files(options.raw, ("*.json.bz2", "*.json", "*.json.gz"), download)


def card(options: Options) -> DatasetCard:
    count = STRUCTURES[options.content]
    return DatasetCard(
        name="alexandria",
        title=f"Alexandria: inorganic crystals, {options.content}",
        theory="PBE and PBE+U, VASP",
        citation="Schmidt et al., Mater. Today Phys. 48, 101560 (2024), 10.1016/j.mtphys.2024.101560",
        licence="CC-BY 4.0",
        structures=min(count, (options.limit or count) * STRUCTURES_PER_MATERIAL[options.content]),
        atoms_per_structure=7.7,
        neighbours_per_atom=23.5,
        seconds_per_structure=0.0004,
    )


def pieces(options: Options) -> list[Piece]:
    """Return one piece per file: JSON can only be read from its beginning, but there are many files."""
    return [
        Piece(name_below(options.raw, path), path.stat().st_size / BYTES_PER_STRUCTURE, path)
        for path in input_files(options)
    ]


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.data.formats import crystaljson
    from gnnscale.data.formats.plausible import PlausibilityCheck

    with Location(piece.path) as location:
        check = PlausibilityCheck(location, "crystals")
        read = read_relaxed if crystaljson.first_key(location) == "entries" else read_trajectories
        for material, label, made in read(location, options.limit):
            location.where = label
            try:
                yield check(to_structure(location, material, label, *made))
            except crystaljson.DisorderedSite:
                skip("partial occupancy")
        check.finish()


def read_relaxed(location: Location, limit: int | None) -> Iterator[tuple[str, str, tuple]]:
    """Yield (material, label, parts) with the energy under `data` and forces at the sites; the stress has no documented unit."""
    from gnnscale.data.formats import crystaljson

    for index, entry in islice(crystaljson.read_entries(location), limit):
        data = entry["data"]
        if "mat_id" not in data or "energy_total" not in data:
            raise location.fault(f"mat_id or energy_total is missing; there is {', '.join(data)[:300]}")
        properties = [site.get("properties") or {} for site in entry["structure"]["sites"]]
        forces = [each.get("forces") for each in properties]
        complete = None if None in forces else forces
        label = f"entry {index}, {data['mat_id']}"
        yield str(data["mat_id"]), label, (entry["structure"], data["energy_total"], complete, None)


def read_trajectories(location: Location, limit: int | None) -> Iterator[tuple[str, str, tuple]]:
    """Yield (material, label, parts) of files {material: [{"steps": [{structure, energy, forces, stress}, ...]}, ...]}."""
    from gnnscale.data.formats import crystaljson

    for material, calculations in islice(crystaljson.read_members(location), limit):
        for number, calculation in enumerate(calculations):
            for step, frame in enumerate(calculation["steps"]):
                label = f"{material} calculation {number} step {step}"
                location.where = label
                yield material, label, (frame["structure"], frame["energy"], frame["forces"], frame["stress"])


def to_structure(
    location: Location, material: str, label: str, structure: dict, energy: float | None, forces: object, stress: object
) -> Structure:
    from gnnscale.atoms import units
    from gnnscale.atoms.structure import Structure
    from gnnscale.data.formats import crystaljson

    made = crystaljson.to_crystal(location, structure)
    stress_kbar = crystaljson.to_array(location, stress, (3, 3), "stress")
    return Structure(
        **made._asdict(),
        energy=float("nan") if energy is None else float(energy),
        forces=crystaljson.to_array(location, forces, made.positions.shape, "forces"),
        stress=-units.KBAR * stress_kbar,  # VASP: positive in compression
        group=material,
        label=label,
    )


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
