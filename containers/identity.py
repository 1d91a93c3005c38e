"""image.json: what an image is, written inside of it as the last act of %post; and its labels.

`id` is a digest of the system and of all packages in it, so it is the same for an image that was built again with the
same, packed by another program, or is run by another runtime. The code of gnnscale is not in it: a stage's key knows that.
"""

import hashlib
import json
import os
import platform
import sys
from pathlib import Path

HOME = Path("/opt/gnnscale")

said = json.loads((HOME / "recipe.json").read_text())
said |= {
    "accelerator": sys.argv[1],
    "arch": platform.machine(),
    "python": platform.python_version(),
    "system": (HOME / "system.txt").read_text().split("\n")[:-1],
    "packages": (HOME / "python.txt").read_text().split("\n")[:-1],
}
parts = [said[name] for name in ("accelerator", "arch", "python", "system", "packages")]
said["id"] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
(HOME / "image.json").write_text(json.dumps(said, indent=1) + "\n")

labels = os.environ.get("APPTAINER_LABELS") or os.environ.get("SINGULARITY_LABELS")
if labels:
    with open(labels, "a") as file:
        for name in ("id", "accelerator", "version", "commit", "lock", "recipe"):
            file.write(f"gnnscale.{name} {said[name]}\n")
