"""A dataset's script run by its path: published files in, shards and card.json out, without study or workflow.

python datasets/ani1x.py RAW OUT [--option value]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from gnnscale import convert, files, stage
from gnnscale.data import shards, splits
from gnnscale.data.structure import Structure
from gnnscale.specs import ConvertSettings

REFUSED = 64  # as the stages have it


def main(script: dict[str, Any]) -> None:
    """`script` is globals() of the dataset's script. Never returns."""
    try:
        run(script)
    except (files.BadFile, stage.Refusal, OSError, ValueError) as error:
        hint = getattr(error, "hint", "")
        print(f"\nerror: {error}" + (f"\n  {hint}" if hint else ""), file=sys.stderr)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def run(script: dict[str, Any]) -> None:
    options, out = arguments(script)
    card, skipped = script["card"](options), Counter()
    if (out / "card.json").exists():
        raise ValueError(f"{out / 'card.json'} exists; choose another folder, or remove it")
    settings = ConvertSettings(dataset=Path(script["__file__"]).stem, name=card.name)
    raw = script["inputs"](options)
    size = sum(path.stat().st_size for path in raw) / 2**30
    print(f"{card.name}: {len(raw)} files, {size:.3g} GiB, about {card.structures} structures, into {out}")
    began = time.monotonic()
    found = script["structures"](options, lambda reason: skipped.update([reason]))
    shards.write(out / "shards", watched(found, card.structures, began), settings.split)
    print(f"\nread in {time.monotonic() - began:.0f} s; counting edges")
    packed = shards.read(out / "shards")
    made = convert.describe(packed, card, settings, dict(sorted(skipped.items())))
    files.write_model(out / "card.json", made)
    summary(packed, dict(sorted(skipped.items())))


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


def watched(structures: Iterator[Structure], expected: int, began: float) -> Iterator[Structure]:
    """One line that is written over, at most twice a second."""
    last = began
    number = 0
    for number, structure in enumerate(structures, 1):
        convert.check(structure, number)
        yield structure
        now = time.monotonic()
        if now - last > 0.5:
            last = now
            progress(number, expected, now - began)
    progress(number, expected, time.monotonic() - began)


def progress(number: int, expected: int, seconds: float) -> None:
    rate = number / max(seconds, 1e-9)
    left = max(0, expected - number) / max(rate, 1e-9)
    print(f"\r{number} structures, {rate:.0f}/s, about {left:.0f} s left   ", end="", flush=True)


def summary(packed: shards.Packed, skipped: dict[str, int]) -> None:
    energy, forces = packed.energy / packed.natoms, packed.forces[np.isfinite(packed.forces).all(1)]
    print(f"{len(packed.energy)} structures, {len(np.unique(packed.group))} groups, {len(packed.numbers)} atoms")
    print(f"atoms {packed.natoms.min()} to {packed.natoms.max()}, mean {packed.natoms.mean():.1f}")
    if np.isfinite(energy).any():
        print(f"energy {np.nanmean(energy):.3f} +- {np.nanstd(energy):.3f} eV/atom")
    if len(forces):
        print(f"force rms {np.sqrt((forces**2).mean()):.3f}, largest component {np.abs(forces).max():.1f} eV/A")
    lacking = {"energy": packed.energy, "forces": packed.forces, "stress": packed.stress}
    share = {name: float(np.isnan(values).mean()) for name, values in lacking.items()}
    print("lacking " + (", ".join(f"{name} {100 * part:.0f} %" for name, part in share.items() if part) or "nothing"))
    counts = [f"{name} {int((packed.split == k).sum())}" for k, name in enumerate(splits.NAMES)]
    print("split " + ", ".join(counts))
    print("skipped " + (", ".join(f"{count} ({reason})" for reason, count in skipped.items()) or "none"))
