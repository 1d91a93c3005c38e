"""YAML files written by people: read safely, checked strictly, and every problem told with its line."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from gnnscale.contract.errors import Problem

M = TypeVar("M", bound=BaseModel)
SEXAGESIMAL = re.compile(r"^[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9]*)?$")
NUMBER = re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9_]*)?([eE][-+]?[0-9]+)?$")


class Loader(yaml.SafeLoader):
    """PyYAML, but 3e-4 is a number, and a key that is given twice or is no word is an error."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # 2026-13-45, !!bool x, !!timestamp x
            words = f"{str(node.value)[:40]!r} is no {node.tag.rpartition(':')[2]}"
            raise yaml.MarkedYAMLError(problem=words, problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a name is a word, no list or mapping", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


def nearest(word: str, known: list[str]) -> str:
    """'; did you mean X?' where something is close, else what there is."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def load(path: Path, kind: type[M], shown: str | None = None) -> M:
    """The file as a model, or one Problem with all its problems."""
    shown = shown or str(path)
    data, root = read(path, shown)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise Problem(*explain(error, kind, shown, root)) from None


def read(path: Path, shown: str) -> tuple[dict, yaml.Node]:
    """What the file says, and where it says it."""
    text = contents(path, shown)
    try:
        root = yaml.compose(text, Loader)
        data = yaml.load(text, Loader)
        numbers = times(root) if isinstance(data, dict) else []
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Problem(f"{shown}:{mark.line + 1 if mark else 1}: not YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Problem(f"{shown}:{line}: not YAML: the character U+{error.character:04X} may not be in it") from None
    except RecursionError:
        raise Problem(f"{shown}: not YAML for us: something in it is nested in itself, or too deeply") from None
    if not isinstance(data, dict):
        raise Problem(f"{shown}:1: found {type(data).__name__}, expected `name: value` lines")
    unquoted = [
        f'{shown}:{line}: {value} is unquoted, which YAML reads as the number {number}; write "{value}"'
        for value, number, line in numbers
    ]
    if unquoted:
        raise Problem(*unquoted)
    return data, root


def contents(path: Path, shown: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Problem(f"{shown}: {error.strerror.lower()}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise Problem(
            f"{shown}:{line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def is_blank(path: Path) -> bool:
    """Whether there are only comments in it."""
    return all(
        line.strip() in ("", "---") or line.lstrip().startswith("#") for line in contents(path, str(path)).splitlines()
    )


def times(node: yaml.Node) -> list[tuple[str, int, int]]:
    """Unquoted 12:00:00 and the like: (as written, as YAML 1.1 reads it, line)"""
    if isinstance(node, yaml.ScalarNode):
        if node.style is None and SEXAGESIMAL.match(node.value):
            number = 0
            for part in node.value.split(":"):
                number = number * 60 + int(float(part))
            return [(node.value, number, node.start_mark.line + 1)]
        return []
    children = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    return [found for child in children for found in times(child)]


TAGS = (
    "egnn",
    "convert",
    "audit",
    "train",
    "evaluate",
    "scaling",
    "report",
    "passes",
    "compute",
    "none",
    "slurm",
    "pbs",
)


def explain(error: ValidationError, kind: type[BaseModel], shown: str, root: yaml.Node | None = None) -> list[str]:
    """One line a problem: where, what was found, what was expected."""
    return [
        f"{shown}:{line_of(root, path)}: {text}" if root is not None else f"{shown}: {text}"
        for path, text in problems(error, kind)
    ]


def problems(error: ValidationError, kind: type[BaseModel]) -> list[tuple[list[str | int], str]]:
    """(path, what was found and what was expected)"""
    found_all = []
    for problem in error.errors():
        path = [part for part in problem["loc"] if not is_tag(part, problem["loc"])]
        name, found = ".".join(map(str, path)), problem.get("input")
        if problem["type"] == "extra_forbidden":
            text = f"unknown name {path[-1]!r}; {nearest(str(path[-1]), fields_at(kind, problem['loc'][:-1]))}"
        elif problem["type"] == "missing":
            text = f"{name} is missing"
        elif problem["type"] == "literal_error":
            known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            text = f"{name}: found {found!r}; {nearest(str(found), known)}"
        elif problem["type"] == "union_tag_invalid":
            path.append(problem["ctx"]["discriminator"].strip("'"))
            known = re.findall(r"'([^']*)'", problem["ctx"]["expected_tags"])
            text = f"{name}.{path[-1]}: found {problem['ctx']['tag']!r}; {nearest(problem['ctx']['tag'], known)}"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            text = f"{name}: found {found!r}: {message[0].lower() + message[1:]}" if name else message
        found_all.append((path, text))
    return found_all


def is_tag(part: object, loc: tuple) -> bool:
    """Pydantic puts the tag of a union into the location; the file has no such level."""
    return part in TAGS and loc[0] != part


def line_of(node: yaml.Node, path: list[str | int]) -> int:
    """The line of the deepest part of the path that is in the file."""
    line = node.start_mark.line
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return line + 1


def line_in(file: Path, path: list[str | int]) -> int:
    return line_of(yaml.compose(contents(file, str(file)), Loader), path)


def fields_at(kind: Any, loc: tuple) -> list[str]:
    """The names that are allowed where an unknown one was found."""
    models = [kind]
    for part in loc:
        if isinstance(part, int):
            continue
        inner = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [m for annotation in inner for m in models_in(annotation)] or models
    return sorted({name for model in models for name in model.model_fields})


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def value(text: str) -> Any:
    """One value, as it would be read after a colon."""
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError):
        return text
