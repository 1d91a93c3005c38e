"""Your own structures in DeePMD-kit's format: folders with type.raw and set.*/coord.npy, box.npy, energy.npy, ...

Systems of mixed types, with set.*/real_atom_types.npy, are read too. eV and Angstrom; a file `nopbc` means no cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from gnnscale.data.formats.own_data import OwnDataOptions, own_data_card
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.data.formats.raw_files import Location, find_files, name_below

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    import numpy as np

    from gnnscale.atoms.structure import Structure
    from gnnscale.contract.dataset_card import DatasetCard

WHAT_TO_GIVE = "give the path of a folder that holds, at any depth, type.raw, type_map.raw and set.000/coord.npy"
ARRAYS = ("coord", "box", "energy", "force", "virial", "real_atom_types")


class Options(OwnDataOptions):
    """Options of this dataset."""

    raw: str = Field(description="folder that holds one or many systems, each with type.raw, type_map.raw and set.*")
    limit: int | None = Field(None, ge=1, description="use only the first frames of each system, at most this many")


def systems(options: Options) -> list[Path]:
    return [path.parent for path in find_files(options.raw, ("type.raw",), WHAT_TO_GIVE)]


def input_files(options: Options) -> list[Path]:
    listed = []
    for system in systems(options):
        listed += [path for name in ("type.raw", "type_map.raw", "nopbc") if (path := system / name).is_file()]
        listed += [path for name in ARRAYS for path in system.glob(f"set.*/{name}.npy")]
    return sorted(listed)


def card(options: Options) -> DatasetCard:
    return own_data_card("deepmd", options, neighbours=35.0, seconds=0.0004)


def pieces(options: Options) -> list[Piece]:
    """Return one piece per set of every system."""
    listed = []
    for system in systems(options):
        left = options.limit
        with Location(system) as location:
            sets = sorted(path for path in system.glob("set.*") if path.is_dir())
            if not sets:
                raise location.fault(f"no set.* in it; {WHAT_TO_GIVE}")
            atoms = len(read_types(location, system)[0])
            for folder in sets:
                location.where = folder.name
                frames = len(read_array(location, folder, "coord", None, 3 * atoms))
                last = frames if left is None else min(frames, left)
                left = left and left - last
                if last:
                    listed.append(Piece(name_below(options.raw, folder), last, folder, span=(0, last)))
                if left == 0:
                    break
    return listed


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.data.formats.plausible import PlausibilityCheck

    with Location(piece.path.parent) as location:
        check = PlausibilityCheck(location, options.energies)
        for structure in read_frames(location, piece.path, piece.bounds[1]):
            yield check(structure)
        check.finish()


def read_frames(location: Location, folder: Path, last: int) -> Iterator[Structure]:
    """Yield the first `last` frames of one set of a system; the system is the group."""
    import numpy as np

    from gnnscale.atoms.structure import Structure

    system = folder.parent
    kinds, elements = read_types(location, system)
    periodic = not (system / "nopbc").is_file()
    location.where = folder.name
    coord = read_array(location, folder, "coord", None, 3 * len(kinds))
    count = len(coord)
    energy = read_array(location, folder, "energy", count, 1, float("nan"))
    force = read_array(location, folder, "force", count, 3 * len(kinds), float("nan"))
    virial = read_array(location, folder, "virial", count, 9, float("nan"))
    box = read_array(location, folder, "box", count, 9) if periodic else np.zeros((count, 9))
    mixed = read_array(location, folder, "real_atom_types", count, len(kinds), -2)
    for k in range(last):
        location.where = f"{folder.name} frame {k}"
        real = kinds if mixed[k, 0] == -2 else np.asarray(mixed[k])
        there = real >= 0  # in systems of mixed types, -1 fills up
        if real.max() >= len(elements):
            raise location.fault(f"type {real.max()}, but type_map.raw names {len(elements)}")
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


def read_types(location: Location, system: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the type of each atom, and the atomic number of each type."""
    import numpy as np
    from ase.data import atomic_numbers

    location.where = "type.raw"
    kinds = np.array([int(word) for word in (system / "type.raw").read_text().split()])
    location.where = "type_map.raw"
    if not (system / "type_map.raw").is_file():
        raise location.fault("missing; it names the element of each type")
    symbols = (system / "type_map.raw").read_text().split()
    unknown = [symbol for symbol in symbols if symbol not in atomic_numbers]
    if unknown or not len(kinds) or kinds.min() < 0 or kinds.max() >= len(symbols):
        raise location.fault(f"types {set(kinds.tolist())} are named {symbols}")
    return kinds, np.array([atomic_numbers[symbol] for symbol in symbols])


def read_array(
    location: Location, folder: Path, name: str, count: int | None, width: int, lacking: float | None = None
) -> np.ndarray:
    """Map an array without reading it; if the file is absent, return `lacking` everywhere: (count, width)."""
    from tokenize import TokenError

    import numpy as np

    path = folder / f"{name}.npy"
    location.where = f"{folder.name}/{path.name}"
    if not path.is_file():
        if lacking is None:
            raise location.fault("missing")
        assert count is not None, f"{name} must be present: it tells the number of frames"
        return np.broadcast_to(np.array(lacking), (count, width))
    try:
        made = np.load(path, mmap_mode="r", allow_pickle=False)
    except (SyntaxError, TokenError) as error:  # raised by NumPy for a broken header
        raise location.fault(f"its header is broken ({error})") from None
    rows = len(made) if made.ndim else -1
    if made.size != rows * width or (count is not None and rows != count) or made.dtype.kind not in "fiu":
        raise location.fault(f"shape {made.shape}, expected {count or 'any'} x {width}: atoms or frames disagree")
    return made.reshape(rows, width)


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
