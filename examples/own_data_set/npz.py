"""Crystals of our own in one NumPy file: a minimal script of a data set.

Copy it to datasets/ to use it in a study: {name: copper, dataset: npz, options: {raw: examples/own_data_set/copper.npz}}.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.data.formats.pieces import Piece, SkipStructure
from gnnscale.schema import Spec

if TYPE_CHECKING:  # plans import this file for its card alone, so NumPy is imported in the functions that need it
    from gnnscale.atoms.structure import Structure


class Options(Spec):
    """The options of this data set in a study."""

    raw: str = Field(description="copper.npz as examples/own_data_set/make_data.py writes it, or the folder with it")


def input_files(options: Options) -> list[Path]:
    path = Path(options.raw).expanduser()
    found = [path] if path.is_file() else sorted(path.glob("*.npz"))
    if not found:
        raise FileNotFoundError(f"{path}: no such file; make it: python examples/own_data_set/make_data.py")
    return found


def card(options: Options) -> DatasetCard:
    return DatasetCard(
        name="copper",
        title="shaken copper crystals",
        theory="effective-medium theory, ASE",
        citation="examples/own_data_set",
        licence="MIT",
        structures=160,
        atoms_per_structure=8.0,
        neighbours_per_atom=42.0,
        seconds_per_structure=0.001,
    )


def pieces(options: Options) -> list[Piece]:
    """Each file is one piece; a large file would be cut into ranges."""
    return [Piece(path.name, 160, path) for path in input_files(options)]


def structures(options: Options, piece: Piece, skip: SkipStructure) -> Iterator[Structure]:
    import numpy as np

    from gnnscale.atoms.structure import Structure

    with np.load(piece.path) as file:
        for k, energy in enumerate(file["energy"]):
            if not np.isfinite(energy):
                skip("no energy")
                continue
            yield Structure(
                numbers=file["numbers"],
                positions=file["positions"][k],  # Angstrom
                cell=file["cell"][k],
                pbc=np.ones(3, bool),
                energy=float(energy),  # eV, total
                forces=file["forces"][k],  # eV/Angstrom
                stress=np.full((3, 3), np.nan),  # a label that is missing is NaN
                group=str(file["material"][k]),
                label=f"{piece.name} {k}",
            )


if __name__ == "__main__":
    from gnnscale.stages import dataset_script

    dataset_script.main(globals())
