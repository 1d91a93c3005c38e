"""A dataset's script run by its path: published files in, shards and card.json out, without study or workflow.

python datasets/ani1x.py RAW OUT [--option value]; also under mpirun or srun. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from gnnscale.contract import datasets, errors, files
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.contract.settings import ConvertSettings
from gnnscale.data.conversion import dataset, parallel, work_items
from gnnscale.data.storage import mapped, splits
from gnnscale.data.storage.packed import HAS_STRESS
from gnnscale.machine.rank_env import ranks

REFUSED = 64  # as the stages have it
ASKED = "asked.digest"  # which options and files an unfinished conversion has


def main(script: dict[str, Any]) -> None:
    """`script` is globals() of the dataset's script. Never returns."""
    try:
        run(script)
    except (files.BadFile, errors.Refusal, OSError, ValueError) as error:
        hint = getattr(error, "hint", "")
        print(f"\nerror: {error}" + (f"\n  {hint}" if hint else ""), file=sys.stderr)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def run(script: dict[str, Any]) -> None:
    options, out = arguments(script)
    if (out / "card.json").exists():
        raise ValueError(f"{out / 'card.json'} exists; choose another folder, or remove it")
    settings = ConvertSettings(
        dataset=Path(script["__file__"]).stem, name=script["card"](options).name, options=options.model_dump()
    )
    job, raw = dataset.prepared(settings), datasets.script(settings.dataset).inputs(options)
    first = ranks().rank == 0
    size = sum(path.stat().st_size for path in raw) / 2**30
    cut = work_items.lots(job.script.units(options), job.card)
    expected = sum(lot.structures for lot in cut)
    if first:
        print(f"{job.card.name}: {len(raw)} files, {size:.3g} GiB, about {expected:,.0f} structures, into {out}")
        begin(out, settings, [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in raw])
    else:
        while not (out / ASKED).exists():
            time.sleep(0.1)
    parallel.convert(job, cut, out, expected, progress)
    if not first:
        return
    print()
    made = dataset.joined(out, job)
    files.write_model(out / "card.json", made)
    summary(mapped.open(out / "shards"), made)


def begin(out: Path, settings: ConvertSettings, raw: list[list]) -> None:
    """What was begun with other options or files is not gone on with."""
    asked = files.digest([settings.model_dump(), raw]) + "\n"
    if (out / ASKED).exists() and (out / ASKED).read_text() != asked:
        raise ValueError(f"{out}: a conversion with other options or files was begun here; choose another folder")
    files.write(out / ASKED, asked)


def arguments(script: dict[str, Any]) -> tuple[Any, Path]:
    """The fields of the script's Options, as a command line; pydantic reads the values."""
    kind = script["Options"]
    parser = argparse.ArgumentParser(description=script["__doc__"].splitlines()[0])
    parser.add_argument("raw", metavar="RAW", help=kind.model_fields["raw"].description)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the shards and card.json")
    for name, field in kind.model_fields.items():
        if name != "raw":
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                dest=name,
                default=argparse.SUPPRESS,
                help=f"{field.description} [{field.default}]".replace("%", "%%"),
            )
    given = vars(parser.parse_args())
    out = given.pop("out")
    try:
        return kind(**given), out
    except ValidationError as error:
        told = "; ".join(f"--{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        parser.error(told)


def progress(done: int, expected: float, rate: float, left: float | None) -> None:
    """One line that is written over."""
    print(f"\r{done} structures, {rate:.0f}/s, about {left or 0:.0f} s left   ", end="", flush=True)


def summary(found: mapped.Shards, card: ShardCard) -> None:
    energy = found.energy / found.natoms
    groups = sum(count.groups for count in card.counts.values())
    print(f"{len(found)} structures, {groups} groups, {found.ptr[-1]} atoms")
    print(f"atoms {found.natoms.min()} to {found.natoms.max()}, mean {found.natoms.mean():.1f}")
    if np.isfinite(energy).any():
        print(f"energy {np.nanmean(energy):.3f} +- {np.nanstd(energy):.3f} eV/atom")
    total = found.manifest.total
    components = 3 * total.counts["train"].atoms
    if total.forces:
        print(f"force rms {card.force_rms:.3f} eV/A")
    share = {
        "energy": float(np.isnan(energy).mean()),
        "forces": 1 - total.forces / components,
        "stress": float((found.flags & HAS_STRESS == 0).mean()),
    }
    print("lacking " + (", ".join(f"{name} {100 * part:.0f} %" for name, part in share.items() if part) or "nothing"))
    print("split " + ", ".join(f"{name} {card.counts[name].structures}" for name in splits.NAMES))
    print("skipped " + (", ".join(f"{count} ({reason})" for reason, count in card.skipped.items()) or "none"))
