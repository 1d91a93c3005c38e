"""A conversion's beginning and end: the dataset's script with its options, and the manifest and card of all shards."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from ase.data import chemical_symbols
from pydantic import ValidationError

from gnnscale.contract import datasets, errors, places
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.contract.settings import ConversionSettings
from gnnscale.data.conversion.empty_splits import fill_empty_splits
from gnnscale.data.conversion.known_references import (
    check_symbols,
    choose_known_references,
    describe_undetermined,
    wrong_references,
)
from gnnscale.data.conversion.shard_notes import NOTES, Note, count_skipped, join_references, read_all_notes
from gnnscale.data.conversion.work_items import Conversion
from gnnscale.data.storage import adios, reference_energies
from gnnscale.data.storage.manifest import Manifest, ShardSums

V = TypeVar("V")
FRAMES_LEAK = (
    "Frames were split one by one: held-out frames resemble frames of the training, as those of one trajectory do, "
    "so errors on other trajectories are larger than the errors given here"
)


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
    check_symbols(settings.name, settings.references)
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


def join_shards(folder: Path, conversion: Conversion) -> ShardCard:
    """Write the manifest over the shards of all work items, with no split empty, and return the card."""
    notes, settings = read_all_notes(folder), conversion.settings
    manifest = write_manifest(folder, notes)
    if not manifest.total.structures:
        left_out = ", ".join(f"{count:,} ({reason})" for reason, count in count_skipped(notes).items())
        raise errors.UserError(
            f"{settings.name}: no structure to convert; left out: {left_out or 'none, as none was read'}",
            "check `raw` and the options of the dataset",
            kind="data",
        )
    settled, moves = fill_empty_splits(folder, notes, manifest, settings)
    if moves.groups:
        manifest = write_manifest(folder, settled)
    remarks = [FRAMES_LEAK] if settings.split.by == "frame" and settings.test_of is None else []
    return make_card(manifest.total, conversion, notes, [*remarks, *filter(None, [moves.describe()])])


def write_manifest(folder: Path, notes: list[Note]) -> Manifest:
    return adios.write_manifest(folder / "shards", [note.entry for note in notes if note.entry is not None])


def make_card(total: ShardSums, conversion: Conversion, notes: list[Note], remarks: list[str]) -> ShardCard:
    """Return what normalisation, load balance and planning must know of the shards, from sums alone."""
    settings = conversion.settings
    energies = total.energies if settings.test_of is None else reference_energies.add_energy_sums([])
    known, origins = choose_known_references(conversion, join_references(notes))
    if wrong := reference_energies.find_wrong_unit(energies, known):
        raise wrong_references(settings.name, wrong, origins)
    references, rank = reference_energies.fit_references(energies, known)
    shifts = reference_energies.fit_shifts(energies, references) if known else dict.fromkeys(references, 0.0)
    undetermined = reference_energies.find_undetermined(energies, known)
    for z in references:
        alone = not any(z in each for each in undetermined)
        origins.setdefault(z, "fitted" if alone else "fitted, not determined alone")
    baselines = {z: energy + shifts[z] for z, energy in references.items()}
    return ShardCard(
        card=conversion.card,
        cutoff=settings.cutoff,
        split=settings.split,
        counts=total.counts,
        elements=by_symbol(total.elements),
        trained_elements=tuple(chemical_symbols[z] for z in total.trained_elements),
        test_of=settings.test_of,
        references=by_symbol(known | references),
        reference_origins=by_symbol(origins),
        reference_rank=rank,
        shifts=by_symbol(shifts),
        energy_rms=reference_energies.residual_rms(energies, baselines),
        force_rms=math.sqrt(total.forces_squared / total.forces) if total.forces else float("nan"),
        skipped=count_skipped(notes),
        remarks=(*remarks, *describe_undetermined(undetermined)),
        content=total.content,
    )


def by_symbol(values: Mapping[int, V]) -> dict[str, V]:
    return {chemical_symbols[z]: values[z] for z in sorted(values)}
