"""Options and card of the user's own data, shared by the scripts extxyz, deepmd and hydragnn.

Light to import: the planner imports it, on a login node, through these scripts.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.schema import Record


class OwnDataOptions(Record):
    """Facts about the user's own data that only the user can state, for its card and for checks."""

    title: str = Field("structures of our own", description="one line for tables and figures")
    theory: str = Field("not stated", description="level of theory of the labels, for the card")
    citation: str = Field("not stated", description="where they were published, for the card")
    licence: str = Field("not stated", description="under which they may be used, for the card")
    structures: int = Field(1000, ge=1, description="approximate number of structures; the planner's estimate")
    atoms: float = Field(30.0, gt=0, description="approximate number of atoms per structure; the planner's estimate")
    energies: Literal["any", "atoms", "crystals"] = Field(
        "any",
        description="kind of the energies, to detect a wrong unit: atoms = total energies of all electrons, "
        "crystals = as VASP has them, of valence electrons; any = no check",
    )


def own_data_card(name: str, options: OwnDataOptions, neighbours: float, seconds: float) -> DatasetCard:
    """Return the card of the user's own data."""
    return DatasetCard(
        name=name,
        title=options.title,
        theory=options.theory,
        citation=options.citation,
        licence=options.licence,
        structures=options.structures,
        atoms_per_structure=options.atoms,
        neighbours_per_atom=neighbours,
        seconds_per_structure=seconds,
    )
