"""Facts that a plan takes from the scripts in datasets/: the card of a data set, and the digests of its raw files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gnnscale.contract import datasets, errors, files
from gnnscale.contract.command_name import command_name
from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.contract.settings import ConversionSettings
from workflow.config import published_files, yaml_file
from workflow.plan.keys import digest_raw


def dataset_script(settings: ConversionSettings) -> tuple[Any, Any]:  # a module and its own class of options
    """Return the script of a data set, which by contract imports nothing heavy, and its options."""
    script: Any = datasets.load_script(settings.dataset)
    try:
        return script, script.Options(**settings.options)
    except ValidationError as error:
        where = f"source {settings.name!r}, options of dataset {settings.dataset!r}"
        raise errors.UserError("\n".join(yaml_file.describe_problems(error, script.Options, where))) from None


def dataset_card(settings: ConversionSettings) -> DatasetCard:
    script, options = dataset_script(settings)
    return script.card(options)


def raw_file_digests(settings: ConversionSettings) -> dict[str, str]:
    """Return the digest of each file that a conversion reads, by its path below `raw`; generated data have none.

    Of a list of quarantined structures, only the entries for this source count.
    """
    digests = {}
    try:
        if settings.quarantine:
            listed = datasets.read_quarantine(Path(settings.quarantine), settings.name)
            digests["list of quarantined structures"] = files.digest(sorted([*who, why] for who, why in listed.items()))
        if "raw" in settings.options:
            script, options = dataset_script(settings)
            paths, raw = script.input_files(options), Path(options.raw)
            folder = raw if raw.is_dir() else raw.parent
            digests |= {os.path.relpath(path, folder): digest_raw(path) for path in paths}
    except (FileNotFoundError, errors.BadFile) as error:
        raise errors.UserError(f"source {settings.name!r}: {error}", *fetch_hints(settings.dataset)) from None
    return digests


def fetch_hints(dataset: str) -> list[str]:
    """Return how a published data set is downloaded; nothing for data of the user's own."""
    names = [name for name in published_files.BY_NAME if name.split("/")[0] == dataset]
    choice = f"{names[0]} (or {', '.join(names[1:])})" if len(names) > 1 else "".join(names)
    return [f"or download it: {command_name()} data fetch {choice}; then raw: data:{names[0]}"] if names else []
