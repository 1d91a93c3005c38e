"""Reading of raw files through the scripts of datasets/, for the tests of all container formats."""

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
from gnnscale.contract.errors import BadFile
from tests.support.corpus import ROOT

SCRIPTS = datasets.dataset_names()
RAW = [name for name in SCRIPTS if name not in ("generated", "hydragnn")]  # which have their own tests
OWN = ["extxyz", "deepmd", "ase_files", "pymatgen_json", "pyanitools"]  # of the user, who says what they are
SHARED = Path(os.environ.get("GNNSCALE_SHARED", ROOT.parent / "shared")) / "data"


@cache
def load_script(name: str) -> ModuleType:
    return datasets.load_script(name)


def read_all(name: str, raw: object, **options: object) -> tuple[list[Structure], Counter]:
    """Return the structures of all pieces, and what was skipped."""
    skipped = Counter()
    made = load_script(name).Options(raw=str(raw), **options)
    found = [
        structure
        for piece in load_script(name).pieces(made)
        for structure in load_script(name).structures(made, piece, lambda reason: skipped.update([reason]))
    ]
    return found, skipped


def read_until_fault(name: str, raw: object, **options: object) -> tuple[list[Structure], Exception | None]:
    """Return the structures before the fault, and the fault or None; BadFile and ValueError are the only faults."""
    kept = []
    try:
        options = load_script(name).Options(raw=str(raw), **options)
        for piece in load_script(name).pieces(options):
            for structure in load_script(name).structures(options, piece, lambda reason: None):
                kept.append(structure)
    except (BadFile, ValueError) as error:
        return kept, error
    return kept, None


def is_same(one: Structure, two: Structure) -> bool:
    for field in ("numbers", "positions", "cell", "pbc", "energy", "forces", "stress"):
        a, b = np.asarray(getattr(one, field)), np.asarray(getattr(two, field))
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-11, atol=1e-11, equal_nan=a.dtype.kind == "f"):
            return False
    return True


def require_sample(name: str) -> Path:
    """Return the path of a real sample; skip the test where this machine has none."""
    path = SHARED / name
    if not path.exists():
        required = "shared" in os.environ.get("GNNSCALE_REQUIRE", "")
        (pytest.fail if required else pytest.skip)(f"no {path}: the real samples are not on this machine")
    return path
