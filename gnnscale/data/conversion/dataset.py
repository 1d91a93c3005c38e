"""A conversion's beginning and end: the dataset's script with its options, and the manifest and card of all shards."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ase.data import chemical_symbols
from pydantic import ValidationError

from gnnscale.contract import datasets, errors, places
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.contract.settings import ConversionSettings
from gnnscale.data.conversion.shard_notes import NOTES, count_skipped, read_all_notes
from gnnscale.data.conversion.work_items import Conversion
from gnnscale.data.storage import adios, reference_energies
from gnnscale.data.storage.manifest import ShardSums


def prepare_conversion(settings: ConversionSettings) -> Conversion:
    """Load the script, its options and the quarantine; a mistake in them is reported before anything is read."""
    if settings.dataset not in datasets.dataset_names():
        known = ", ".join(datasets.dataset_names())
        raise errors.UserError(f"no dataset {settings.dataset!r} in {places.DATASETS}", f"known: {known}")
    script = datasets.load_script(settings.dataset)
    try:
        options = script.Options(**settings.options)
    except ValidationError as error:
        raise errors.UserError(f"options of dataset {settings.dataset!r}: {error}") from None
    quarantined = datasets.read_quarantine(Path(settings.quarantine), settings.name) if settings.quarantine else {}
    return Conversion(script, options, settings, script.card(options), quarantined)


def collect_parts(directory: Path, parts: Iterable[Path]) -> None:
    """Bring the shards of all parts into one folder, as hard links: no second copy, and each folder stands alone."""
    for name in ("shards", NOTES):
        shutil.rmtree(directory / name, ignore_errors=True)
        (directory / name).mkdir()
        for part in parts:
            shutil.copytree(part / name, directory / name, copy_function=link_or_copy, dirs_exist_ok=True)


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def join_shards(directory: Path, conversion: Conversion) -> ShardCard:
    """Write the manifest over the shards of all work items, and return the card."""
    notes = read_all_notes(directory)
    manifest = adios.write_manifest(directory / "shards", [note.entry for note in notes if note.entry is not None])
    return make_card(manifest.total, conversion, count_skipped(notes))


def make_card(total: ShardSums, conversion: Conversion, skipped: dict[str, int]) -> ShardCard:
    """Return what normalisation, load balance and planning must know of the shards, from sums alone."""
    for name in ("train", "test"):
        if not total.counts[name].structures:
            groups = sum(count.groups for count in total.counts.values())
            raise errors.UserError(
                f"{conversion.settings.name}: no structure falls into the {name} split ({groups} groups)",
                "ask for more structures, a larger share, or another split seed",
                kind="data",
            )
    fitted, rank = reference_energies.fit_references(total.energies)
    return ShardCard(
        card=conversion.card,
        cutoff=conversion.settings.cutoff,
        counts=total.counts,
        elements={chemical_symbols[z]: count for z, count in total.elements.items()},
        references={chemical_symbols[z]: fitted[z] for z in total.elements},
        reference_rank=rank,
        energy_rms=reference_energies.residual_rms(total.energies, fitted),
        force_rms=math.sqrt(total.forces_squared / total.forces) if total.forces else float("nan"),
        skipped=skipped,
        content=total.content,
    )
