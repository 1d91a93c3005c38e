"""The container image that this process is in, if it is in one; read from what is only there."""

from __future__ import annotations

import json
import os
from pathlib import Path

from gnnscale.contract.files import sha256
from gnnscale.contract.places import ROOT
from gnnscale.contract.settings import Scalar

HOME = Path("/opt/gnnscale")
RUNTIMES = (
    ("APPTAINER_CONTAINER", "apptainer"),
    ("SINGULARITY_CONTAINER", "singularity"),
    ("SHIFTER_RUNTIME", "shifter"),
)


def inside() -> dict | None:
    """image.json of the image, as its build left it; None outside of any."""
    try:
        return json.loads((HOME / "image.json").read_text()) if ROOT == HOME else None
    except (OSError, ValueError):
        return None


def runtime() -> str:
    for variable, name in RUNTIMES:
        if variable in os.environ:
            return name
    return "podman" if Path("/run/.containerenv").exists() else "other"


def fault(wanted: str | None, code: dict[str, str]) -> str:
    """Why a stage whose key is of this image and code must not run here, or ""."""
    said = inside()
    if wanted is not None and (said is None or said["id"] != wanted):
        found = f"in image {said['id'][:12]}" if said else "outside of any image"
        return f"this stage is of image {wanted[:12]}, and runs {found}"
    if said is None:
        return ""
    other = [name for name, digest in code.items() if not (ROOT / name).exists() or sha256(ROOT / name)[:16] != digest]
    return f"the code in here is not the one that this stage is of: {', '.join(other[:3])}" if other else ""


def provenance() -> dict[str, Scalar]:
    """What result.json tells of it. No path: it would say where the image was, and nothing of the result."""
    said = inside()
    if said is None:
        return {}
    bound = os.path.ismount(HOME / "gnnscale")
    return {
        "image": said["id"],
        "image_recipe": said["recipe"],
        "runtime": runtime(),
        "code": "of a checkout, over the image's" if bound else "of the image",
        "commit": os.environ.get("GNNSCALE_COMMIT") or None if bound else said["commit"],
    }
