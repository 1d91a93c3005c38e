"""The code in a stage's key: every source file that the stage can reach, with its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gnnscale.contract.places import ROOT, source_file, source_name
from gnnscale.contract.source_code import read_source, remember_sources

# Rooms that carry settings and results but compute none: a key holds the values of the settings instead.
ROOMS_NOT_HASHED = ("contract", "machine", "job")
SAMPLED_BLOCKS, BLOCK_BYTES = 16, 64 * 1024


def digest_code(kind: str, *also: str) -> dict[str, str]:
    """Return name -> digest of the files that a kind of stage reaches by its imports, and from the files `also`."""
    waiting = [*files_of_module(f"gnnscale.stages.{kind}"), *map(source_file, also)]
    found: dict[str, str] = {}
    while waiting:
        path = waiting.pop()
        name = source_name(path)
        if name in found or not (name in also or is_hashed(name)):
            continue
        source = read_source(path)
        found[name] = source.digest
        waiting += [file for module in source.imports for file in files_of_module(module)]
    remember_sources()
    return dict(sorted(found.items()))


def is_hashed(name: str) -> bool:
    """Return whether a file lies in a room of gnnscale whose code makes results."""
    package, room, *inside = name.split("/")
    return package == "gnnscale" and bool(inside) and room not in ROOMS_NOT_HASHED


def files_of_module(module: str) -> list[Path]:
    """Return a module's file, the C++ beside it with its headers, and the packages around it; nothing for other packages."""
    parts = module.split(".")
    if parts[0] != "gnnscale":
        return []
    base = ROOT.joinpath(*parts)
    own = [path for path in (base.with_suffix(".py"), base.with_suffix(".cpp"), base / "__init__.py") if path.exists()]
    if base.with_suffix(".cpp") in own:
        own += sorted(base.parent.rglob("*.h"))
    around = [ROOT.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts))]
    return [*own, *(path for path in around if path.exists())] if own else []


def digest_raw(path: Path) -> str:
    """Return a digest of a published file, which may be a terabyte: of its size and of blocks from its start to its end."""
    length = path.stat().st_size
    hasher = hashlib.sha256(str(length).encode())
    with open(path, "rb") as file:
        for number in range(SAMPLED_BLOCKS):
            file.seek(max(0, (length - BLOCK_BYTES) * number // (SAMPLED_BLOCKS - 1)))
            hasher.update(file.read(BLOCK_BYTES))
    return hasher.hexdigest()[:16]
