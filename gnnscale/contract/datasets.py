"""Access to data sources for login node and job: a dataset's script in datasets/, and a list of structures to leave out.

It imports neither NumPy nor anything heavier, as the scripts do not.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from gnnscale.contract.errors import BadFile
from gnnscale.contract.places import DATASETS

LIST_FORMAT = "a list of quarantined structures is JSON {structures: [{source, unit, number, reasons}]} or CSV of these"


def dataset_names() -> list[str]:
    return sorted(path.stem for path in DATASETS.glob("*.py"))


def load_script(name: str) -> ModuleType:
    """Load a dataset's script by its path, as a package called `datasets` would shadow Hugging Face's."""
    module = f"datasets_{name}"
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, DATASETS / f"{name}.py")
        assert spec is not None and spec.loader is not None, f"{name}.py is a Python file"
        sys.modules[module] = made = importlib.util.module_from_spec(spec)  # pydantic looks types up there
        try:
            spec.loader.exec_module(made)
        except BaseException:
            del sys.modules[module]
            raise
    return sys.modules[module]


def read_quarantine(path: Path, source: str) -> dict[tuple[str, int], str]:
    """Return (unit, number in it) -> reason, for the structures of a source that a list leaves out.

    The list is JSON {"structures": [{"source", "unit", "number", "reasons"}, ...]} or CSV with these columns. A row without
    a source counts for every source that is given this list.
    """
    quarantine = {}
    for number, row in enumerate(read_rows(path), 1):
        try:
            if row.get("source") in (None, "", source):
                quarantine[str(row["unit"]), int(row["number"])] = join_reasons(row.get("reasons"))
        except (AttributeError, KeyError, ValueError, TypeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise BadFile(f"{path}: entry {number}: {what}; {LIST_FORMAT}") from None
    return quarantine


def read_rows(path: Path) -> Sequence[Mapping[str, Any]]:
    try:
        if path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8-sig") as file:
                return list(csv.DictReader(file))
        rows: Sequence[Mapping[str, Any]] = json.loads(path.read_text("utf-8-sig"))["structures"]
    except FileNotFoundError:
        raise BadFile(f"{path}: no such list of quarantined structures") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{path}: unreadable ({error}); {LIST_FORMAT}") from None
    return rows


def join_reasons(reasons: str | Sequence[object] | None) -> str:
    if not reasons:
        return "no reason given"
    return reasons if isinstance(reasons, str) else "; ".join(sorted(map(str, reasons)))
