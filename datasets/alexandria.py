"""Alexandria: millions of inorganic crystals, relaxed, or all steps of their relaxations; 89 elements.

Schmidt et al., Adv. Mater. 35, 2210788 (2023) and Mater. Today Phys. 48, 101560 (2024). JSON in bzip2, in two layouts:
alexandria_NNN.json.bz2 with relaxed crystals (a list `entries`) and geo_opt_paths with trajectories by material.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.formats.pieces import Place, Unit, below, found
from gnnscale.schema import Spec

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    from gnnscale.atoms.structure import Structure

COUNTS = {"relaxed": 4_489_295, "trajectories": 30_500_000}
PER_MATERIAL = {"relaxed": 1, "trajectories": 10}
BYTES = 400  # of a structure, in bzip2


class Options(Spec):
    """What can be asked of this dataset."""

    raw: str = Field(description="folder with alexandria_*.json.bz2, relaxed or geo_opt_paths, or one of these files")
    limit: int | None = Field(None, ge=1, description="only the first so many materials of each file")
    content: Literal["relaxed", "trajectories"] = Field(
        "relaxed", description="which was downloaded; for the card, the files say it themselves"
    )


def inputs(options: Options) -> list[Path]:
    download = "download alexandria_000.json.bz2 and following of alexandria.icams.rub.de, PBE"
    return found(options.raw, ("*.json.bz2", "*.json", "*.json.gz"), download)


def card(options: Options) -> DatasetCard:
    count = COUNTS[options.content]
    return DatasetCard(
        name="alexandria",
        title=f"Alexandria: inorganic crystals, {options.content}",
        theory="PBE and PBE+U, VASP",
        citation="Schmidt et al., Mater. Today Phys. 48, 101560 (2024), 10.1016/j.mtphys.2024.101560",
        licence="CC-BY 4.0",
        structures=min(count, (options.limit or count) * PER_MATERIAL[options.content]),
        atoms_per_structure=7.7,
        neighbours_per_atom=23.5,
        seconds_per_structure=0.0004,
    )


def units(options: Options) -> list[Unit]:
    """JSON can only be read from its beginning, but there are many files."""
    return [Unit(below(options.raw, path), path.stat().st_size / BYTES, path) for path in inputs(options)]


def structures(options: Options, unit: Unit, skip: Callable[[str], None]) -> Iterator[Structure]:
    from gnnscale.data.formats import crystaljson, plausible

    with Place(unit.path) as place:
        watch = plausible.Watch(place, "crystals")
        read = relaxed if crystaljson.first_key(place) == "entries" else trajectories
        for material, label, made in read(place, options.limit):
            place.where = label
            try:
                yield watch(labelled(place, material, label, *made))
            except crystaljson.Disordered:
                skip("partial occupancy")
        watch.done()


def relaxed(place: Place, limit: int | None) -> Iterator[tuple[str, str, tuple]]:
    """Energy and id under `data`, forces at the sites. The unit of its stress is not documented: it is not read."""
    from gnnscale.data.formats import crystaljson

    for index, entry in islice(crystaljson.entries(place), limit):
        data = entry["data"]
        if "mat_id" not in data or "energy_total" not in data:
            raise place.fault(f"mat_id or energy_total is missing; there is {', '.join(data)[:300]}")
        properties = [site.get("properties") or {} for site in entry["structure"]["sites"]]
        forces = [each.get("forces") for each in properties]
        known = None if None in forces else forces
        label = f"entry {index}, {data['mat_id']}"
        yield str(data["mat_id"]), label, (entry["structure"], data["energy_total"], known, None)


def trajectories(place: Place, limit: int | None) -> Iterator[tuple[str, str, tuple]]:
    """{material: [{"steps": [{structure, energy, forces, stress}, ...]}, ...]}"""
    from gnnscale.data.formats import crystaljson

    for material, calculations in islice(crystaljson.members(place), limit):
        for number, calculation in enumerate(calculations):
            for step, frame in enumerate(calculation["steps"]):
                label = f"{material} calculation {number} step {step}"
                place.where = label
                yield material, label, (frame["structure"], frame["energy"], frame["forces"], frame["stress"])


def labelled(
    place: Place, material: str, label: str, structure: dict, energy: float | None, forces: object, stress: object
) -> Structure:
    from gnnscale.atoms import units
    from gnnscale.atoms.structure import Structure
    from gnnscale.data.formats import crystaljson

    made = crystaljson.crystal(place, structure)
    return Structure(
        **made._asdict(),
        energy=float("nan") if energy is None else float(energy),
        forces=crystaljson.vectors(place, forces, made.positions.shape, "forces"),
        stress=-units.KBAR * crystaljson.vectors(place, stress, (3, 3), "stress"),  # VASP: kbar, compression positive
        group=material,
        label=label,
    )


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
