"""Points and fits that others have published, read from ../shared/scaling_data, where SOURCE.txt names their authors."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SHARED = Path(__file__).parents[3] / "shared" / "scaling_data"
# Caballero et al., arXiv 2210.14891, four-digit addition: training examples, test loss
ADDITION = np.array(
    [
        (160, 2.13809046),
        (192, 2.11813418),
        (256, 2.08955508),
        (320, 2.06988398),
        (384, 2.05404987),
        (448, 2.03837089),
        (480, 2.02814281),
        (512, 2.00496872),
        (544, 1.95576149),
        (576, 1.86313841),
        (608, 1.70891537),
        (640, 1.50637664),
        (672, 1.29754721),
        (736, 0.96559684),
        (800, 0.75856477),
        (864, 0.64768338),
        (928, 0.55695445),
    ]
)


def require_file(name: str) -> Path:
    path = SHARED / name
    if not path.exists() and "shared" not in os.environ.get("GNNSCALE_REQUIRE", ""):
        pytest.skip(
            f"the published points are not on this machine ({name}); GNNSCALE_REQUIRE=shared makes this an error"
        )
    return path


def read_rows(name: str) -> list[dict[str, str]]:
    with open(require_file(name), newline="") as file:
        return list(csv.DictReader(file))


def read_content(name: str) -> Any:
    return json.loads(require_file(name).read_text())


def take_columns(found: list[dict[str, str]], *names: str) -> np.ndarray:
    return np.array([[float(row[name]) for name in names] for row in found]).T


def read_chinchilla(dropped: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Read the points of Hoffmann et al. as Besiroglu et al. (arXiv 2404.10102) digitised them.

    The `dropped` largest losses are left out.
    """
    found = read_rows("chinchilla_epoch/svg_extracted_data.csv")
    n, c, loss = take_columns(found, "Model Size", "Training FLOP", "loss")
    keep = loss < (np.sort(loss)[-dropped] if dropped else np.inf)
    return {"N": n[keep], "D": (c / (6 * n))[keep]}, loss[keep]
