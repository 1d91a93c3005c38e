"""YAML files written by people: read safely, checked strictly, and every problem reported with its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from gnnscale.contract.errors import UserError, reason_of
from workflow.config.field_problems import FieldPath, find_problems

Model = TypeVar("Model", bound=BaseModel)
SEXAGESIMAL_PATTERN = re.compile(r"^[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9]*)?$")
NUMBER_PATTERN = re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9_]*)?([eE][-+]?[0-9]+)?$")


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, except that 3e-4 is a number, and a key that is repeated or not a word is an error."""

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


def load(path: Path, kind: type[Model], shown: str | None = None) -> Model:
    """Read the file as a model, or raise one UserError with all its problems."""
    shown = shown or str(path)
    data, root = read_mapping(path, shown)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError("\n".join(describe_problems(error, kind, shown, root))) from None


def read_mapping(path: Path, shown: str) -> tuple[dict, yaml.Node]:
    """Return the values of the file, and the nodes that know their lines."""
    text = read_text(path, shown)
    try:
        root = yaml.compose(text, StrictLoader)
        data = yaml.load(text, StrictLoader)
        numbers = unquoted_times(root) if root is not None and isinstance(data, dict) else []
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{shown}:{mark.line + 1 if mark else 1}: not YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{shown}:{line}: not YAML: the character U+{error.character:04X} may not be in it") from None
    except RecursionError:
        raise UserError(f"{shown}: not YAML for us: something in it is nested in itself, or too deeply") from None
    if root is None or not isinstance(data, dict):
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
    """Return whether the file holds nothing but comments."""
    return all(
        line.strip() in ("", "---") or line.lstrip().startswith("#") for line in read_text(path, str(path)).splitlines()
    )


def unquoted_times(node: yaml.Node) -> list[tuple[str, int, int]]:
    """List unquoted values like 12:00:00: (as written, the number that YAML 1.1 reads, line)."""
    if isinstance(node, yaml.ScalarNode):
        if node.style is None and SEXAGESIMAL_PATTERN.match(node.value):
            number = 0
            for part in node.value.split(":"):
                number = number * 60 + int(float(part))
            return [(node.value, number, node.start_mark.line + 1)]
        return []
    children = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    return [time for child in children for time in unquoted_times(child)]


def describe_problems(
    error: ValidationError, kind: type[BaseModel], shown: str, root: yaml.Node | None = None
) -> list[str]:
    """Return one line for each problem: where, what was found, what was expected."""
    return [
        f"{shown}:{line_of(root, path)}: {text}" if root is not None else f"{shown}: {text}"
        for path, text in find_problems(error, kind)
    ]


# ------------------------------------------------------------------------------------------------------------ lines
def line_of(node: yaml.Node, path: FieldPath) -> int:
    """Return the line of the deepest part of the path that is in the file."""
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


def line_in(file: Path, path: FieldPath) -> int:
    root = yaml.compose(read_text(file, str(file)), StrictLoader)
    return line_of(root, path) if root is not None else 1


def parse_value(text: str) -> Any:
    """Read one value as it would be read after a colon."""
    try:
        return yaml.load(text, StrictLoader)
    except (yaml.YAMLError, RecursionError):
        return text
