"""The container image that this process runs in, if any, as the image's own record describes it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypedDict

from gnnscale.contract.places import ROOT
from gnnscale.contract.settings import Scalar
from gnnscale.contract.source_code import digest_source

IMAGE_HOME = Path("/opt/gnnscale")
RUNTIME_VARIABLES = (
    ("APPTAINER_CONTAINER", "apptainer"),
    ("SINGULARITY_CONTAINER", "singularity"),
    ("SHIFTER_RUNTIME", "shifter"),
    ("container", "podman"),  # its file /run/.containerenv is hidden in a container that is read-only
)


class ImageRecord(TypedDict):
    """The fields of image.json that a stage needs; workflow/images/ writes it."""

    id: str
    recipe: str
    commit: str | None


def read_image_record() -> ImageRecord | None:
    """Read image.json of the image, as its build left it; None outside of any image."""
    if ROOT != IMAGE_HOME:
        return None
    try:
        record: ImageRecord = json.loads((IMAGE_HOME / "image.json").read_text())
    except (OSError, ValueError):
        return None
    return record


def detect_runtime() -> str:
    return next((name for variable, name in RUNTIME_VARIABLES if variable in os.environ), "other")


def find_mismatch(image: str | None, code: dict[str, str]) -> str:
    """Return why a stage whose key holds this image and code must not run here; "" if it may."""
    record = read_image_record()
    if image is not None and (record is None or record["id"] != image):
        found = f"in image {record['id'][:12]}" if record else "outside of any image"
        return f"this stage needs image {image[:12]}, and runs {found}"
    if record is None:
        return ""
    other = [
        name for name, digest in code.items() if not (ROOT / name).exists() or digest_source(ROOT / name) != digest
    ]
    return f"the code in this image differs from the code in the stage's key: {', '.join(other[:3])}" if other else ""


def describe_image() -> dict[str, Scalar]:
    """Return what result.json records of the image. No path: it would not describe the result."""
    record = read_image_record()
    if record is None:
        return {}
    bound = os.path.ismount(IMAGE_HOME / "gnnscale")
    return {
        "image": record["id"],
        "image_recipe": record["recipe"],
        "runtime": detect_runtime(),
        "code": "of a checkout, over the image's" if bound else "of the image",
        "commit": os.environ.get("GNNSCALE_COMMIT") or None if bound else record["commit"],
    }
