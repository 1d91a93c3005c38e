"""What login node and job both ask of a data source: its script in datasets/, and the list of what to leave out.

Light, as the scripts are by contract: neither NumPy nor anything heavier.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

from gnnscale.contract.files import BadFile
from gnnscale.contract.places import DATASETS


def names() -> list[str]:
    return sorted(path.stem for path in DATASETS.glob("*.py"))


def script(name: str) -> ModuleType:
    """A dataset is one file, run by path: a package called `datasets` would shadow Hugging Face's."""
    module = f"datasets_{name}"
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, DATASETS / f"{name}.py")
        sys.modules[module] = made = importlib.util.module_from_spec(spec)  # pydantic looks types up there
        try:
            spec.loader.exec_module(made)
        except BaseException:
            del sys.modules[module]
            raise
    return sys.modules[module]


def quarantined(path: Path, source: str) -> dict[tuple[str, int], str]:
    """(unit, number in it) -> why that structure of a source is left out.

    JSON {"structures": [{"source", "unit", "number", "reasons"}, ...]} or CSV with these columns; a row without a source
    is of every source that is given this list.
    """
    hint = "a list of quarantined structures is JSON {structures: [{source, unit, number, reasons}]} or CSV of these"
    try:
        if path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
        else:
            rows = json.loads(path.read_text("utf-8-sig"))["structures"]
    except FileNotFoundError:
        raise BadFile(f"{path}: no such list of quarantined structures") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{path}: unreadable ({error}); {hint}") from None
    found = {}
    for number, row in enumerate(rows, 1):
        try:
            if row.get("source") in (None, "", source):
                reasons = row.get("reasons") or "no reason given"
                told = reasons if isinstance(reasons, str) else "; ".join(sorted(map(str, reasons)))
                found[str(row["unit"]), int(row["number"])] = told
        except (AttributeError, KeyError, ValueError, TypeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise BadFile(f"{path}: entry {number}: {what}; {hint}") from None
    return found
