"""The published split of the Open Catalyst Project's files, by the folders in which they lie.

Light to import: the planner imports it, on a login node, through datasets/oc20.py and oc22.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gnnscale.contract.errors import BadFile
from gnnscale.data.formats.raw_files import name_below

UNLABELLED = "published without labels"
SPLIT_OF_FOLDER = {  # rattled structures and those of molecular dynamics belong to the training data
    "train": "train",
    "rattled": "train",
    "md": "train",
    "val_id": "validation",
    "val_ood": "test",
    "test_id": UNLABELLED,
    "test_ood": UNLABELLED,
}


def published_splits(raw: str, paths: Sequence[Path]) -> dict[Path, str | None]:
    """Return the split of each file by its folder where all three splits are present; UNLABELLED files are in none.

    Where the files are of one split only, or of none, it is None: they are split by hash of the group.
    """
    by_folder = {path: split_of_folder(name_below(raw, path)) for path in paths}
    present = {split for split in by_folder.values() if split != UNLABELLED}
    if present == {"train", "validation", "test"}:
        return dict(by_folder)
    if len(present) > 1:
        outside = next((name_below(raw, path) for path, split in by_folder.items() if not split), "")
        raise BadFile(
            f"{raw}: of the published split there is {', '.join(sorted(present - {''}))}, "
            f"by folders called {', '.join(SPLIT_OF_FOLDER)}"
            + (f"; {outside} is in no such folder" if outside else ""),
            "keep the folders train, val_id and val_ood there and no others, or give one of them: it is split by hash",
        )
    return {path: split if split == UNLABELLED else None for path, split in by_folder.items()}


def split_of_folder(name: str) -> str:
    """Return the split by the innermost folder with such a name, as s2ef_train_200K or val_ood_ads; "" if none has."""
    for folder in reversed(name.split("/")[:-1]):
        for prefix, split in SPLIT_OF_FOLDER.items():
            if re.fullmatch(rf"(s2ef_)?{prefix}(_.*)?", folder):
                return split
    return ""
