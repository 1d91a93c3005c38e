"""TODO: say what a reader finds here."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from ase.data import chemical_symbols
from pydantic import ValidationError

from gnnscale.contract import datasets, errors, places, stage_run
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.contract.settings import ConvertSettings
from gnnscale.data.conversion import parallel, work_items
from gnnscale.data.conversion.work_items import Job, Lot, Note
from gnnscale.data.storage import adios, reference_energies
from gnnscale.data.storage.manifest import Sums
from gnnscale.machine.rank_env import ranks


def prepared(settings: ConvertSettings) -> Job:
    """The script, its options and what is to be left out; a mistake in them is told before anything is read."""
    if settings.dataset not in datasets.names():
        known = ", ".join(datasets.names())
        raise errors.Refusal(f"no dataset {settings.dataset!r} in {places.DATASETS}", f"known: {known}")
    script = datasets.script(settings.dataset)
    try:
        options = script.Options(**settings.options)
    except ValidationError as error:
        raise errors.Refusal(f"options of dataset {settings.dataset!r}: {error}") from None
    listed = datasets.quarantined(Path(settings.quarantine), settings.name) if settings.quarantine else {}
    return Job(script, options, settings, script.card(options), listed)


def work(run: stage_run.Run, job: Job, mine: list[Lot], cut: list[Lot]) -> None:
    """Those of the lots that are not made yet, shared among the ranks."""
    expected = sum(lot.structures for lot in mine)
    if len(mine) == len(cut) and "raw" not in job.settings.options:
        expected = job.card.structures
    if not ranks().rank:
        print(f"{job.settings.name}: about {expected:,.0f} structures in {len(mine)} of {len(cut)} lots", flush=True)
    parallel.convert(job, mine, run.directory, expected, lambda done, total, **more: run.progress(done, total, **more))


def gather(run: stage_run.Run) -> None:
    """The shards of all parts under one folder, as hard links: no second copy, and each folder stands alone."""
    for name in ("shards", "lots"):
        shutil.rmtree(run.directory / name, ignore_errors=True)
        (run.directory / name).mkdir()
        for part in run.needs.values():
            shutil.copytree(part / name, run.directory / name, copy_function=link, dirs_exist_ok=True)


def link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def joined(directory: Path, job: Job) -> ShardCard:
    """The manifest over the shards of all lots, and the card."""
    noted = all_notes(directory)
    manifest = adios.join(directory / "shards", [note.entry for note in noted if note.entry is not None])
    return describe(manifest.total, job, skipped(noted))


def all_notes(directory: Path) -> list[Note]:
    """In the order of the lots, every one at its end."""
    found: list[Note] = []
    number = 0
    while True:
        mine = work_items.notes(directory, number)
        if not mine or not mine[-1].done:
            raise errors.Refusal(f"{directory}: lot {number} was never finished", "run the conversion again", "data")
        found += mine
        number += 1
        if number == mine[-1].of:
            return found


def skipped(noted: list[Note]) -> dict[str, int]:
    """Reason -> structures; what a note says holds for its lot until there."""
    counts: dict[str, int] = {}
    for note in noted:
        for reason, count in note.skipped.items() if note.done else ():
            counts[reason] = counts.get(reason, 0) + count
    return dict(sorted(counts.items()))


def describe(total: Sums, job: Job, left_out: dict[str, int]) -> ShardCard:
    """Everything that normalisation, load balance and planning need to know of the shards: from sums alone."""
    for name in ("train", "test"):
        if not total.counts[name].structures:
            groups = sum(count.groups for count in total.counts.values())
            raise errors.Refusal(
                f"{job.settings.name}: no structure falls into the {name} split ({groups} groups)",
                "ask for more structures, a larger share, or another split seed",
                "data",
            )
    fitted, rank = reference_energies.fit(total.energies)
    return ShardCard(
        card=job.card,
        cutoff=job.settings.cutoff,
        counts=total.counts,
        elements={chemical_symbols[z]: count for z, count in total.elements.items()},
        references={chemical_symbols[z]: fitted[z] for z in total.elements},
        reference_rank=rank,
        energy_rms=reference_energies.rms(total.energies, fitted),
        force_rms=math.sqrt(total.forces_squared / total.forces) if total.forces else float("nan"),
        skipped=left_out,
        content=total.content,
    )
