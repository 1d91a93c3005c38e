"""Digests and imports of source files, as keys of stages and images compare them: comments and docstrings do not count."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract.places import cache_folder

DIGEST_CHARACTERS = 16
MAX_REMEMBERED = 2000  # source files in the cache, of all versions
HAVE_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# A string is matched first, so that nothing in it is taken for a comment.
CPP_STRING_OR_COMMENT = re.compile(rb'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.S)


class SourceFile(NamedTuple):
    """Everything that a key needs to know of one source file."""

    digest: str
    imports: tuple[str, ...]  # absolute names; `from a import b` gives a and a.b, as b may be a module


def digest_source(path: Path) -> str:
    """Return the digest of a source file without its comments and docstrings."""
    return read_source(path).digest


def read_source(path: Path) -> SourceFile:
    """Read one source file, once for each of its versions that this process meets."""
    state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size)


@cache
def _read(path: Path, mtime_ns: int, size: int) -> SourceFile:
    content = path.read_bytes()
    name = f"{hashlib.sha256(content).hexdigest()}{path.suffix}"
    known = _remembered()
    if name not in known.files:
        known.files[name] = analyse_python(content) if path.suffix == ".py" else analyse_cpp(content)
        known.added.append(name)
    return known.files[name]


def analyse_python(content: bytes) -> SourceFile:
    tree = ast.parse(content)
    return SourceFile(_hash(repr(_shape(tree)).encode()), tuple(dict.fromkeys(_imports(tree))))


def analyse_cpp(content: bytes) -> SourceFile:
    return SourceFile(_hash(CPP_STRING_OR_COMMENT.sub(_without_comment, content)), ())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGEST_CHARACTERS]


def _without_comment(found: re.Match[bytes]) -> bytes:
    return found[0] if found[0].startswith(b'"') else b" "


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _shape(node: object) -> object:
    """Return nested tuples of names and values: unlike ast.dump, the same in every version of Python.

    Later versions add fields to nodes; those that hold nothing are left out.
    """
    if isinstance(node, ast.Constant):
        return repr(node.value)
    if isinstance(node, list):
        return [_shape(each) for each in node]
    if not isinstance(node, ast.AST):
        return node
    skipped = 1 if isinstance(node, HAVE_DOCSTRINGS) and ast.get_docstring(node, clean=False) is not None else 0
    fields = (
        (name, value[skipped:] if name == "body" and skipped else value)
        for name, value in ast.iter_fields(node)
        if value is not None and value != []
    )
    return (type(node).__name__, *((name, _shape(value)) for name, value in fields))


# ----------------------------------------------------------------------------------------------- from plan to plan
class _Remembered(NamedTuple):
    files: dict[str, SourceFile]  # by the hash of the content, so that an entry is true for ever
    added: list[str]  # what the file of the cache does not hold yet


@cache
def _remembered() -> _Remembered:
    """Read the cache: to parse a hundred files takes as long as all the rest of a plan."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        saved = json.loads(_cache_file().read_text())
        if saved["made_by"] == _version():
            files = {name: SourceFile(digest, tuple(imports)) for name, (digest, imports) in saved["files"].items()}
            return _Remembered(files, [])
    return _Remembered({}, [])


def remember_sources() -> None:
    """Write the cache, if this process has read a file that it does not hold."""
    known = _remembered()
    if not known.added:
        return
    known.added.clear()
    content = json.dumps({"made_by": _version(), "files": dict(list(known.files.items())[-MAX_REMEMBERED:])})
    with suppress(OSError):  # an installed package or a full disk: the next plan parses again
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        beside = _cache_file().with_suffix(f".{os.getpid()}.tmp")
        beside.write_text(content)
        beside.replace(_cache_file())


def _cache_file() -> Path:
    return cache_folder() / "source_code.json"


@cache
def _version() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
