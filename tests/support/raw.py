"""Raw files read through the scripts of datasets/: what the tests of each container format have in common."""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gnnscale.atoms.structure import Structure
from gnnscale.contract import datasets
from gnnscale.contract.files import BadFile
from tests.support.corpus import ROOT

SCRIPTS = datasets.names()
RAW = [name for name in SCRIPTS if name not in ("generated", "hydragnn")]  # which have their own tests
SHARED = Path(os.environ.get("GNNSCALE_SHARED", ROOT.parent / "shared")) / "data"


@cache
def script(name: str) -> ModuleType:
    return datasets.script(name)


def read(name: str, raw: object, **options: object) -> tuple[list[Structure], Counter]:
    """(structures of all units, what was skipped)"""
    skipped = Counter()
    made = script(name).Options(raw=str(raw), **options)
    found = [
        structure
        for unit in script(name).units(made)
        for structure in script(name).structures(made, unit, lambda reason: skipped.update([reason]))
    ]
    return found, skipped


def until_fault(name: str, raw: object, **options: object) -> tuple[list[Structure], Exception | None]:
    """(structures before the fault, the fault or None). Nothing but BadFile and ValueError may come out."""
    kept = []
    try:
        options = script(name).Options(raw=str(raw), **options)
        for unit in script(name).units(options):
            for structure in script(name).structures(options, unit, lambda reason: None):
                kept.append(structure)
    except (BadFile, ValueError) as error:
        return kept, error
    return kept, None


def same(one: Structure, two: Structure) -> bool:
    for field in ("numbers", "positions", "cell", "pbc", "energy", "forces", "stress"):
        a, b = np.asarray(getattr(one, field)), np.asarray(getattr(two, field))
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-11, atol=1e-11, equal_nan=a.dtype.kind == "f"):
            return False
    return True


def shared(name: str) -> Path:
    """A real sample, where this machine has them."""
    path = SHARED / name
    if not path.exists():
        required = "shared" in os.environ.get("GNNSCALE_REQUIRE", "")
        (pytest.fail if required else pytest.skip)(f"no {path}: the real samples are not on this machine")
    return path
