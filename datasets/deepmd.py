"""Your own structures in DeePMD-kit's format: folders with type.raw and set.*/coord.npy, box.npy, energy.npy, ...

Systems of mixed types, with set.*/real_atom_types.npy, are read too. eV and Angstrom; a file `nopbc` means no cell. The
labels are the arrays energy, force and virial. A system is a group. Its last set is for tests if `last_set` says so, as
DeePMD-kit 1 had it; or the folders say it (split_by_file), such as training_data/ and validation_data/.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gnnscale.data.formats.own_data import (
    NOT_READ,
    LabelKeys,
    complete_pieces,
    own_data_card,
    path_beside,
    published_splits,
    skip_unread_files,
)
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.data.formats.raw_files import OWN_FILE, Location, find_files, name_below
from gnnscale.data.formats.source_size import SourceSize, measure_array, measure_files

if TYPE_CHECKING:  # the planner imports this file for its card alone, on a login node
    import numpy as np

    from gnnscale.atoms.structure import Structure
    from gnnscale.contract.dataset_card import DatasetCard
    from gnnscale.data.formats.own_structures import OwnFrame

GEOMETRY = {"coord", "box", "real_atom_types"}
WHAT_TO_GIVE = "give the path of a folder that holds, at any depth, type.raw, type_map.raw and set.000/coord.npy"


class Options(LabelKeys):
    """Options of this dataset."""

    raw: str = Field(description="folder that holds one or many systems, each with type.raw, type_map.raw and set.*")
    limit: int | None = Field(None, ge=1, description="use only the first frames of each system, at most this many")
    forces: str = Field("force", description="name of the array of forces, such as force; 'none' leaves forces out")
    last_set: Literal["train", "test"] = Field(
        "train", description="test: the last set of each system that has several is its test set, as in DeePMD-kit 1"
    )


def systems(options: Options) -> list[Path]:
    """Return the folders of all systems, with that of the isolated atoms, which may lie among them."""
    listed = [path.parent for path in find_files(options.raw, ("type.raw",), WHAT_TO_GIVE)]
    beside = path_beside(options.raw, options.isolated_atoms)
    if beside is None or beside in listed:
        return listed
    return [*listed, *(path.parent for path in find_files(str(beside), ("type.raw",), WHAT_TO_GIVE))]


def input_files(options: Options) -> list[Path]:
    listed = []
    for system in systems(options):
        listed += [path for name in ("type.raw", "type_map.raw", "nopbc") if (path := system / name).is_file()]
        listed += system.glob("set.*/*.npy")
    return sorted(listed)


def card(options: Options) -> DatasetCard:
    def count() -> SourceSize:
        arrays = [path for path in input_files(options) if path.name == "coord.npy"]
        return measure_files(arrays, options.limit, measure_array)

    return own_data_card("deepmd", options, 35.0, 0.0004, count)


def pieces(options: Options) -> list[Piece]:
    """Return one piece per set of every system."""
    listed, splits = [], published_splits(options, systems(options))
    for system in systems(options):
        with Location(system, OWN_FILE) as location:
            listed += [piece._replace(split=splits.get(system)) for piece in pieces_of_system(options, location)]
    return complete_pieces(options, input_files(options), listed)


def pieces_of_system(options: Options, location: Location) -> list[Piece]:
    """Return one piece per set, until as many frames as the options allow."""
    listed, left, atoms = [], options.limit, len(read_types(location, location.path)[0])
    for folder in sets_of(location):
        location.where = folder.name
        frames = len(read_array(location, folder, "coord", None, 3 * atoms))
        last = frames if left is None else min(frames, left)
        left = left and left - last
        if last:
            listed.append(Piece(name_below(options.raw, folder), last, folder, span=(0, last)))
        if left == 0:
            break
    return listed


def sets_of(location: Location) -> list[Path]:
    found = sorted(path for path in location.path.glob("set.*") if path.is_dir())
    if not found:
        raise location.fault("no set.* in it", WHAT_TO_GIVE)
    return found


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    from gnnscale.data.formats.own_structures import to_structures

    if piece.key == NOT_READ:
        skip_unread_files(options.raw, input_files(options), skip)
        return
    with Location(piece.path.parent, OWN_FILE) as location:
        sets = sets_of(location)
        is_test = options.last_set == "test" and len(sets) > 1 and piece.path == sets[-1]
        for structure in to_structures(options, location, piece, read_frames(options, location, piece)):
            if options.last_set == "test":
                structure = structure._replace(split="test" if is_test else "train")
            yield structure


def read_frames(options: Options, location: Location, piece: Piece) -> Iterator[tuple[str, str, OwnFrame]]:
    """Yield (label, group, frame) of one set of a system; the system is the group."""
    import numpy as np

    from gnnscale.data.formats.own_structures import OwnFrame

    folder, system = piece.path, piece.path.parent
    kinds, elements = read_types(location, system)
    periodic = not (system / "nopbc").is_file()
    coord = read_array(location, folder, "coord", None, 3 * len(kinds))
    box = read_array(location, folder, "box", len(coord), 9) if periodic else np.zeros((len(coord), 9))
    mixed = read_array(location, folder, "real_atom_types", len(coord), len(kinds), -2)
    labels = read_labels(options, location, folder, len(coord), len(kinds))
    for k in range(piece.bounds[1]):
        location.where = f"{folder.name} frame {k}"
        real = kinds if mixed[k, 0] == -2 else np.asarray(mixed[k])
        there = real >= 0  # in systems of mixed types, -1 fills up
        if real.max() >= len(elements):
            raise location.fault(f"type {real.max()}, but type_map.raw names {len(elements)}")
        values: dict[str, Any] = {name: np.asarray(rows[k], float) for name, rows in labels.items()}
        columns = {name: row.reshape(-1, 3)[there] for name, row in values.items() if len(row) == 3 * len(kinds)}
        frame = OwnFrame(
            elements[real[there]],
            np.asarray(coord[k], float).reshape(-1, 3)[there],
            np.asarray(box[k], float).reshape(3, 3),
            np.full(3, periodic),
            values,
            columns,
        )
        yield f"{name_below(options.raw, folder)} frame {k}", name_below(options.raw, system), frame


def read_labels(options: Options, location: Location, folder: Path, count: int, atoms: int) -> dict[str, np.ndarray]:
    """Return the arrays of labels, (count, any) each, and other arrays of numbers, which may be labels of another name."""
    widths = {options.energy: 1, options.forces: 3 * atoms, options.virial: 9, options.stress: 9}
    found = {}
    for path in sorted(folder.glob("*.npy")):
        made = load_array(location, path)
        if path.stem in widths:
            found[path.stem] = check_array(location, made, count, widths[path.stem])
        elif path.stem not in GEOMETRY and made.dtype.kind in "fiu" and made.shape[:1] == (count,):
            found[path.stem] = made.reshape(count, -1)
    return found


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
    import numpy as np

    path = folder / f"{name}.npy"
    if path.is_file():
        return check_array(location, load_array(location, path), count, width)
    location.where = f"{folder.name}/{path.name}"
    if lacking is None:
        raise location.fault("missing")
    assert count is not None, f"{name} must be present: it gives the number of frames"
    return np.broadcast_to(np.array(lacking), (count, width))


def load_array(location: Location, path: Path) -> np.ndarray:
    from tokenize import TokenError

    import numpy as np

    location.where = f"{path.parent.name}/{path.name}"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (SyntaxError, TokenError) as error:  # raised by NumPy for a broken header
        raise location.fault(f"its header is broken ({error})") from None


def check_array(location: Location, made: np.ndarray, count: int | None, width: int) -> np.ndarray:
    rows = len(made) if made.ndim else -1
    if made.size != rows * width or (count is not None and rows != count) or made.dtype.kind not in "fiu":
        raise location.fault(f"shape {made.shape}, expected {count or 'any'} x {width}: atoms or frames disagree")
    return made.reshape(rows, width)


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
