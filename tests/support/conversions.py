"""Conversion of structures in memory by the functions of the stage, for tests of what it makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from gnnscale.atoms.structure import Structure
from gnnscale.contract.dataset_card import DatasetCard, ShardCard
from gnnscale.contract.settings import ConvertSettings
from gnnscale.data.conversion.dataset import join_shards
from gnnscale.data.conversion.work_items import Conversion, split_work
from gnnscale.data.formats.pieces import Piece
from gnnscale.stages.convert import convert_items

CARD = DatasetCard(
    name="mine",
    title="made in memory",
    theory="none",
    citation="none",
    licence="none",
    structures=10,
    atoms_per_structure=5.0,
    neighbours_per_atom=5.0,
    seconds_per_structure=1e-4,
)


def prepare(structures: Sequence[Structure], published: dict[str, float] | None = None, **settings) -> Conversion:
    """Return the conversion of these structures by a script that yields them; `published` are references of its card."""
    script = SimpleNamespace(
        pieces=lambda options: [Piece("memory", float(len(structures)))],
        structures=lambda options, piece, skip: iter(structures),
    )
    asked = ConvertSettings(dataset="extxyz", name=settings.pop("name", "mine"), **settings)
    return Conversion(script, None, asked, CARD.model_copy(update={"references": published or {}}), {})


def convert(folder: Path, structures: Sequence[Structure], **settings) -> ShardCard:
    """Convert structures into shards under `folder`, and return the card."""
    conversion = prepare(structures, **settings)
    convert_items(conversion, split_work(conversion), folder, lambda: None)
    card = join_shards(folder, conversion)
    (folder / "card.json").write_text(card.model_dump_json())
    return card
