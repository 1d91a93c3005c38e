"""Writes image.json, the identity of an image, and its labels: the last step of %post.

`id` is a digest of the system and of all packages. So it stays the same for an image that is built again from the same
packages, packed by another program, or run by another runtime. The code of gnnscale is not part of it: keys of stages hold
its digests.
"""

import hashlib
import json
import os
import platform
import sys
from pathlib import Path

HOME = Path("/opt/gnnscale")

content = json.loads((HOME / "recipe.json").read_text())
content |= {
    "accelerator": sys.argv[1],
    "arch": platform.machine(),
    "python": platform.python_version(),
    "system": (HOME / "system.txt").read_text().split("\n")[:-1],
    "packages": (HOME / "python.txt").read_text().split("\n")[:-1],
}
parts = [content[name] for name in ("accelerator", "arch", "python", "system", "packages")]
content["id"] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
(HOME / "image.json").write_text(json.dumps(content, indent=1) + "\n")

labels = os.environ.get("APPTAINER_LABELS") or os.environ.get("SINGULARITY_LABELS")
if labels:
    with open(labels, "a") as file:
        for name in ("id", "accelerator", "version", "commit", "lock", "recipe"):
            file.write(f"gnnscale.{name} {content[name]}\n")
