"""Which source files a stage's result depends on: its module and, in turn, all that it imports of ours."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from gnnscale.contract.files import sha256
from gnnscale.contract.places import ROOT

IMPORT = re.compile(r"^\s*(?:from\s+(gnnscale[\w.]*)\s+import\s+(\([^)]*\)|.+)|import\s+(gnnscale[\w.]*))", re.M)
# What lies here carries settings and results and makes none: what it says reaches a key through the settings' values.
NOT_HASHED = ("gnnscale/__init__.py", "gnnscale/schema.py", "gnnscale/contract/", "gnnscale/machine/", "gnnscale/job/")
SAMPLES, BLOCK = 16, 64 * 1024

_digests: dict[Path, str] = {}


def code_of(stage: str, *scripts: str) -> dict[str, str]:
    """File -> digest, for a stage's module and for further files (a dataset's script)."""
    waiting = [*files_of(f"gnnscale.stages.{stage}"), *(ROOT / s for s in scripts)]
    found: dict[str, str] = {}
    while waiting:
        path = waiting.pop()
        name = str(path.relative_to(ROOT))
        if name in found or name.startswith(NOT_HASHED):
            continue
        if path not in _digests:
            _digests[path] = sha256(path)[:16]
        found[name] = _digests[path]
        waiting += imports(path)
    return dict(sorted(found.items()))


def raw_digest(path: Path) -> str:
    """Of a published file that may be a terabyte: its size and SAMPLES blocks, first and last among them."""
    length = path.stat().st_size
    whole = hashlib.sha256(str(length).encode())
    with open(path, "rb") as file:
        for number in range(SAMPLES):
            file.seek(max(0, (length - BLOCK) * number // (SAMPLES - 1)))
            whole.update(file.read(BLOCK))
    return whole.hexdigest()[:16]


def imports(path: Path) -> list[Path]:
    found = []
    for module, names, plain in IMPORT.findall(path.read_text()):
        module = module or plain
        found += files_of(module)
        for name in re.findall(r"\w+", names.split("#")[0]):
            found += files_of(f"{module}.{name}")
    return found


def files_of(module: str) -> list[Path]:
    """The file of a module, what is compiled for it, and the packages around it; none if the name is not a module."""
    base = ROOT.joinpath(*module.split("."))
    own = [p for p in (base.with_suffix(".py"), base.with_suffix(".cpp"), base / "__init__.py") if p.exists()]
    around = [p / "__init__.py" for p in base.parents if p != ROOT and ROOT in p.parents]
    return [*own, *(p for p in around if p.exists())] if own else []
