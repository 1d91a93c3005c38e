"""Conversion by hand: a dataset's script, run by its path, makes shards and card.json without a study.

python datasets/ani1x.py RAW OUT [--option value]; also under mpirun or srun. After a stop the same command continues.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from gnnscale.contract import datasets, errors, exit_codes, files
from gnnscale.contract.dataset_card import ShardCard, Split
from gnnscale.contract.settings import ConvertSettings
from gnnscale.data.conversion.dataset import join_shards, prepare_conversion
from gnnscale.data.conversion.known_references import describe_references
from gnnscale.data.conversion.work_items import split_work
from gnnscale.data.storage import mapped
from gnnscale.data.storage.packed import HAS_STRESS
from gnnscale.machine.rank_env import read_ranks
from gnnscale.stages.convert import convert_on_ranks

SPLIT_BY = "frame = each frame is a group of its own, so that errors are too optimistic [group]"
REQUEST = "request.digest"  # of the options and files of an unfinished conversion


def main(script: dict[str, Any]) -> None:
    """Convert with a dataset's script, of which `script` is globals(), and exit."""
    try:
        convert_script(script)
    except (errors.UserError, OSError, ValueError) as error:
        print(file=sys.stderr)  # below the line of progress
        errors.print_error(errors.UserError(str(error)) if isinstance(error, ValueError) else error, "error")
        sys.exit(exit_codes.REFUSED)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        sys.exit(exit_codes.INTERRUPTED)
    sys.exit(exit_codes.DONE)


def convert_script(script: dict[str, Any]) -> None:
    """Convert what the command line names, and print what the shards hold."""
    options, split, out = parse_arguments(script)
    if (out / "card.json").exists():
        raise ValueError(f"{out / 'card.json'} exists; choose another folder, or remove it")
    settings = ConvertSettings(
        dataset=Path(script["__file__"]).stem,
        name=script["card"](options).name,
        options=options.model_dump(),
        split=split,
    )
    conversion, raw = prepare_conversion(settings), datasets.load_script(settings.dataset).input_files(options)
    items = split_work(conversion)
    expected = sum(item.structures for item in items)
    if read_ranks().rank == 0:
        size = sum(path.stat().st_size for path in raw) / 2**30
        print(f"{conversion.card.name}: {len(raw)} files, {size:.3g} GiB, about {expected:,.0f} structures, into {out}")
        note_request(out, settings, [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in raw])
    else:
        while not (out / REQUEST).exists():
            time.sleep(0.1)
    convert_on_ranks(conversion, items, out, expected, print_progress)
    if read_ranks().rank:
        return
    print()
    card = join_shards(out, conversion)
    files.write_model(out / "card.json", card)
    print_summary(mapped.open_shards(out / "shards"), card)


def note_request(out: Path, settings: ConvertSettings, raw: list[list[str | int]]) -> None:
    """Note which options and files this conversion has; refuse to continue one that has others."""
    request = files.digest([settings.model_dump(), raw]) + "\n"
    if (out / REQUEST).exists() and (out / REQUEST).read_text() != request:
        raise ValueError(f"{out}: a conversion with other options or files was begun here; choose another folder")
    files.write(out / REQUEST, request)


def parse_arguments(script: dict[str, Any]) -> tuple[Any, Split, Path]:
    """Parse the command line into the script's Options, the split and the folder OUT; each field of Options is an option."""
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
    parser.add_argument("--split-by", choices=["group", "frame"], default="group", help=SPLIT_BY)
    given = vars(parser.parse_args())
    out, split = given.pop("out"), Split(by=given.pop("split_by"))
    try:
        return kind(**given), split, out
    except ValidationError as error:
        faults = "; ".join(f"--{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        parser.error(faults)


def print_progress(done: float, total: float, *, rate: float, left: float | None) -> None:
    """Print one line, over the one before."""
    print(f"\r{done} structures, {rate:.0f}/s, about {left or 0:.0f} s left   ", end="", flush=True)


def print_summary(found: mapped.Shards, card: ShardCard) -> None:
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
    lacking = {
        "energy": float(np.isnan(energy).mean()),
        "forces": 1 - total.forces / components,
        "stress": float((found.flags & HAS_STRESS == 0).mean()),
    }
    print("lacking " + (", ".join(f"{name} {100 * part:.0f} %" for name, part in lacking.items() if part) or "nothing"))
    print("split " + ", ".join(f"{name} {count.structures}" for name, count in card.counts.items()))
    print(f"references {describe_references(card)}")
    print("\n".join(f"note: {remark}." for remark in card.remarks), end="\n" if card.remarks else "")
    print("skipped " + (", ".join(f"{count} ({reason})" for reason, count in card.skipped.items()) or "none"))
