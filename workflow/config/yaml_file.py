"""YAML files written by people: read safely, checked strictly, and every problem told with its line."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, Tag, ValidationError

from gnnscale.contract.errors import UserError, reason_of

M = TypeVar("M", bound=BaseModel)
SEXAGESIMAL_PATTERN = re.compile(r"^[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9]*)?$")
NUMBER_PATTERN = re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9_]*)?([eE][-+]?[0-9]+)?$")


class StrictLoader(yaml.SafeLoader):
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


StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER_PATTERN, list("-+.0123456789"))


def suggest(word: str, known: list[str]) -> str:
    """'; did you mean X?' where something is close, else what there is."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def load(path: Path, kind: type[M], shown: str | None = None) -> M:
    """The file as a model, or one Problem with all its problems."""
    shown = shown or str(path)
    data, root = read_mapping(path, shown)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError("\n".join(describe_problems(error, kind, shown, root))) from None


def read_mapping(path: Path, shown: str) -> tuple[dict, yaml.Node]:
    """What the file says, and where it says it."""
    text = read_text(path, shown)
    try:
        root = yaml.compose(text, StrictLoader)
        data = yaml.load(text, StrictLoader)
        numbers = unquoted_times(root) if isinstance(data, dict) else []
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{shown}:{mark.line + 1 if mark else 1}: not YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{shown}:{line}: not YAML: the character U+{error.character:04X} may not be in it") from None
    except RecursionError:
        raise UserError(f"{shown}: not YAML for us: something in it is nested in itself, or too deeply") from None
    if not isinstance(data, dict):
        raise UserError(f"{shown}:1: found {type(data).__name__}, expected `name: value` lines")
    unquoted = [
        f'{shown}:{line}: {value} is unquoted, which YAML reads as the number {number}; write "{value}"'
        for value, number, line in numbers
    ]
    if unquoted:
        raise UserError("\n".join(unquoted))
    return data, root


def read_text(path: Path, shown: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{shown}: {reason_of(error)}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{shown}:{line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def is_blank(path: Path) -> bool:
    """Whether there are only comments in it."""
    return all(
        line.strip() in ("", "---") or line.lstrip().startswith("#") for line in read_text(path, str(path)).splitlines()
    )


def unquoted_times(node: yaml.Node) -> list[tuple[str, int, int]]:
    """Unquoted 12:00:00 and the like: (as written, as YAML 1.1 reads it, line)"""
    if isinstance(node, yaml.ScalarNode):
        if node.style is None and SEXAGESIMAL_PATTERN.match(node.value):
            number = 0
            for part in node.value.split(":"):
                number = number * 60 + int(float(part))
            return [(node.value, number, node.start_mark.line + 1)]
        return []
    children = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    return [found for child in children for found in unquoted_times(child)]


@functools.cache
def union_tags(kind: type[BaseModel]) -> frozenset[str]:
    """Return the tags of all unions in a model: pydantic puts them into locations, and a file has no such level."""
    return frozenset(_tags(kind, set()))


def _tags(annotation: Any, seen: set[type[BaseModel]]) -> Iterator[str]:
    if isinstance(annotation, Tag):
        yield annotation.tag
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in seen:
            seen.add(annotation)
            yield from kind_of(annotation)
            for field in annotation.model_fields.values():
                yield from _tags(field.annotation, seen)
    else:
        for argument in get_args(annotation):
            yield from _tags(argument, seen)


def kind_of(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the values that the field `kind` of a model may have."""
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def describe_problems(
    error: ValidationError, kind: type[BaseModel], shown: str, root: yaml.Node | None = None
) -> list[str]:
    """One line a problem: where, what was found, what was expected."""
    return [
        f"{shown}:{line_of(root, path)}: {text}" if root is not None else f"{shown}: {text}"
        for path, text in find_problems(error, kind)
    ]


def find_problems(error: ValidationError, kind: type[BaseModel]) -> list[tuple[list[str | int], str]]:
    """(path, what was found and what was expected)"""
    found_all = []
    for problem in error.errors():
        tags = union_tags(kind) - {problem["loc"][0]} if problem["loc"] else ()
        path = [part for part in problem["loc"] if part not in tags]
        name, found = ".".join(map(str, path)), problem.get("input")
        if problem["type"] == "extra_forbidden":
            text = f"unknown name {path[-1]!r}; {suggest(str(path[-1]), allowed_names(kind, problem['loc'][:-1]))}"
        elif problem["type"] == "missing":
            text = f"{name} is missing"
        elif problem["type"] == "literal_error":
            known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            text = f"{name}: found {found!r}; {suggest(str(found), known)}"
        elif problem["type"] == "union_tag_invalid":
            path.append(problem["ctx"]["discriminator"].strip("'"))
            known = re.findall(r"'([^']*)'", problem["ctx"]["expected_tags"])
            text = f"{name}.{path[-1]}: found {problem['ctx']['tag']!r}; {suggest(problem['ctx']['tag'], known)}"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            text = f"{name}: found {found!r}: {message[0].lower() + message[1:]}" if name else message
        found_all.append((path, text))
    return found_all


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
    return line_of(yaml.compose(read_text(file, str(file)), StrictLoader), path)


def allowed_names(kind: Any, loc: tuple) -> list[str]:
    """The names that are allowed where an unknown one was found."""
    models = [kind]
    for part in loc:
        if isinstance(part, int):
            continue
        models = [model for model in models if part in kind_of(model)] or models  # one of a union
        inner = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [m for annotation in inner for m in models_of(annotation)] or models
    return sorted({name for model in models for name in model.model_fields})


def models_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_of(argument)]


def parse_value(text: str) -> Any:
    """One value, as it would be read after a colon."""
    try:
        return yaml.load(text, StrictLoader)
    except (yaml.YAMLError, RecursionError):
        return text
