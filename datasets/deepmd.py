"""Your own structures in DeePMD-kit's format: folders with type.raw and set.*/coord.npy, box.npy, energy.npy, ...

Also systems of mixed types, with set.*/real_atom_types.npy. eV and Angstrom; a folder `nopbc` file means no cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gnnscale.data.formats.labels import ENERGIES
from gnnscale.data.formats.own_data import OwnOptions, own_card
from gnnscale.data.formats.pieces import Place, Unit, below, found

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    import numpy as np

    from gnnscale.atoms.structure import Structure
    from gnnscale.contract.dataset_card import DatasetCard

WANTED = "give the path of a folder that holds, at any depth, type.raw, type_map.raw and set.000/coord.npy"
ARRAYS = ("coord", "box", "energy", "force", "virial", "real_atom_types")


class Options(OwnOptions):
    """What can be asked of this dataset."""

    raw: str = Field(description="folder that holds one or many systems, each with type.raw, type_map.raw and set.*")
    limit: int | None = Field(None, ge=1, description="only the first so many frames of each system")
    energies: Literal["any", "atoms", "crystals"] = Field("any", description=ENERGIES)


def systems(options: Options) -> list[Path]:
    return [path.parent for path in found(options.raw, ("type.raw",), WANTED)]


def inputs(options: Options) -> list[Path]:
    listed = []
    for system in systems(options):
        listed += [path for name in ("type.raw", "type_map.raw", "nopbc") if (path := system / name).is_file()]
        listed += [path for name in ARRAYS for path in system.glob(f"set.*/{name}.npy")]
    return sorted(listed)


def card(options: Options) -> DatasetCard:
    return own_card("deepmd", options, neighbours=35.0, seconds=0.0004)


def units(options: Options) -> list[Unit]:
    """Every set of every system."""
    listed = []
    for system in systems(options):
        left = options.limit
        with Place(system) as place:
            sets = sorted(path for path in system.glob("set.*") if path.is_dir())
            if not sets:
                raise place.fault(f"no set.* in it; {WANTED}")
            atoms = len(types(place, system)[0])
            for folder in sets:
                place.where = folder.name
                count = len(stored(place, folder, "coord", None, 3 * atoms))
                last = count if left is None else min(count, left)
                left = left and left - last
                if last:
                    listed.append(Unit(below(options.raw, folder), last, folder, span=(0, last)))
                if left == 0:
                    break
    return listed


def structures(options: Options, unit: Unit, skip: Callable[[str], None]) -> Iterator[Structure]:
    from gnnscale.data.formats import plausible

    with Place(unit.path.parent) as place:
        watch = plausible.Watch(place, None if options.energies == "any" else options.energies)
        for structure in frames(place, unit.path, unit.span[1]):
            yield watch(structure)
        watch.done()


def frames(place: Place, folder: Path, last: int) -> Iterator[Structure]:
    """Of one set of a system; the system is the group."""
    import numpy as np

    from gnnscale.atoms.structure import Structure

    system = folder.parent
    kinds, elements = types(place, system)
    periodic = not (system / "nopbc").is_file()
    place.where = folder.name
    coord = stored(place, folder, "coord", None, 3 * len(kinds))
    count = len(coord)
    energy = stored(place, folder, "energy", count, 1, float("nan"))
    force = stored(place, folder, "force", count, 3 * len(kinds), float("nan"))
    virial = stored(place, folder, "virial", count, 9, float("nan"))
    box = stored(place, folder, "box", count, 9) if periodic else np.zeros((count, 9))
    mixed = stored(place, folder, "real_atom_types", count, len(kinds), -2)
    for k in range(last):
        place.where = f"{folder.name} frame {k}"
        real = kinds if mixed[k, 0] == -2 else np.asarray(mixed[k])
        there = real >= 0  # in systems of mixed types, -1 fills up
        if real.max() >= len(elements):
            raise place.fault(f"type {real.max()}, but type_map.raw names {len(elements)}")
        cell = np.asarray(box[k], float).reshape(3, 3)  # rows
        yield Structure(
            numbers=elements[real[there]],
            positions=np.asarray(coord[k], float).reshape(-1, 3)[there],
            cell=cell,
            pbc=np.full(3, periodic),
            energy=float(energy[k].item()),
            forces=np.asarray(force[k], float).reshape(-1, 3)[there],
            # the virial is -dE/dstrain, positive in compression
            stress=-np.asarray(virial[k], float).reshape(3, 3) / (abs(np.linalg.det(cell)) if periodic else np.nan),
            group=f"{system.parent.name}/{system.name}",
            label=f"{system.name} {folder.name} frame {k}",
        )


def types(place: Place, system: Path) -> tuple[np.ndarray, np.ndarray]:
    """(type of each atom, atomic number of each type)"""
    import numpy as np
    from ase.data import atomic_numbers

    place.where = "type.raw"
    kinds = np.array([int(word) for word in (system / "type.raw").read_text().split()])
    place.where = "type_map.raw"
    if not (system / "type_map.raw").is_file():
        raise place.fault("missing: without it nothing tells which element a type is")
    symbols = (system / "type_map.raw").read_text().split()
    unknown = [symbol for symbol in symbols if symbol not in atomic_numbers]
    if unknown or not len(kinds) or kinds.min() < 0 or kinds.max() >= len(symbols):
        raise place.fault(f"types {set(kinds.tolist())} are named {symbols}")
    return kinds, np.array([atomic_numbers[symbol] for symbol in symbols])


def stored(
    place: Place, folder: Path, name: str, count: int | None, width: int, lacking: float | None = None
) -> np.ndarray:
    """(count, width), not read before it is used; `lacking` everywhere if the file is absent and may be."""
    from tokenize import TokenError

    import numpy as np

    path = folder / f"{name}.npy"
    place.where = f"{folder.name}/{path.name}"
    if not path.is_file():
        if lacking is None:
            raise place.fault("missing")
        return np.broadcast_to(np.array(lacking), (count, width))
    try:
        made = np.load(path, mmap_mode="r", allow_pickle=False)
    except (SyntaxError, TokenError) as error:  # what NumPy says of a header that is no Python
        raise place.fault(f"its header is broken ({error})") from None
    rows = len(made) if made.ndim else -1
    if made.size != rows * width or (count is not None and rows != count) or made.dtype.kind not in "fiu":
        raise place.fault(f"shape {made.shape}, expected {count or 'any'} x {width}: atoms or frames disagree")
    return made.reshape(rows, width)


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
