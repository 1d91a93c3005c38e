"""TODO: say what a reader finds here."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.schema import Spec


class OwnOptions(Spec):
    """What the user's own data are asked for besides: nobody else can say what belongs on their card."""

    title: str = Field("structures of our own", description="one line for tables and figures")
    theory: str = Field("not said", description="level of theory of the labels, for the card")
    citation: str = Field("not said", description="where they were published, for the card")
    licence: str = Field("not said", description="under which they may be used, for the card")
    structures: int = Field(1000, ge=1, description="how many there are about; the planner's estimate")
    atoms: float = Field(30.0, gt=0, description="how many a structure has about; the planner's estimate")


def own_card(name: str, options: Any, neighbours: float, seconds: float) -> DatasetCard:
    """The card of data whose Options are OwnOptions and more."""
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
