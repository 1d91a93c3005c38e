"""YAML files written by people: read safely, checked strictly, and every problem reported with its line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo

from gnnscale.contract.errors import UserError, reason_of
from gnnscale.contract.settings import RENAMED_FIELDS

Model = TypeVar("Model", bound=BaseModel)
FieldPath = Sequence[str | int]  # names of mappings and numbers in lists, from the top of a file
SEXAGESIMAL_PATTERN = re.compile(r"^[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9]*)?$")
NUMBER_PATTERN = re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9_]*)?([eE][-+]?[0-9]+)?$")


class FieldProblem(NamedTuple):
    """A field that is wrong, and the sentence that says so."""

    path: FieldPath
    text: str


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


def suggest(word: str, known: Sequence[str]) -> str:
    """Ask "did you mean X?" if a known word is close, and else list what is known."""
    return did_you_mean(word, known) or f"known: {', '.join(sorted(known))}"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def describe_choice(found: object, known: Sequence[str]) -> str:
    """Say what was found in place of one of the known values."""
    if len(known) == 1:
        return f"found {found!r}, expected {known[0]!r}"
    question = did_you_mean(str(found), known)
    return f"found {found!r}, expected one of {', '.join(known)}" + (f"; {question}" if question else "")


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


def find_problems(error: ValidationError, kind: type[BaseModel]) -> list[FieldProblem]:
    return [describe_problem(details, kind) for details in error.errors()]


def describe_problem(details: Any, kind: type[BaseModel]) -> FieldProblem:
    """Put one of pydantic's errors (a dictionary) into words."""
    location, context = details["loc"], details.get("ctx", {})
    if details["type"] == "extra_forbidden":
        *outer, name = location
        place = find_place(kind, outer)
        renamed = {
            old: new for model, names in RENAMED_FIELDS.items() if model in place.models for old, new in names.items()
        }
        advice = f"it is called {renamed[name]!r} now" if name in renamed else suggest(str(name), place.names)
        return FieldProblem([*place.path, name], f"unknown name {name!r}; {advice}")
    path = find_place(kind, location).path
    if details["type"].startswith("union_tag_"):
        path.append(context["discriminator"].strip("'"))
    at = ".".join(map(str, path))
    match details["type"]:
        case "missing" | "union_tag_not_found":
            text = f"{at} is missing"
        case "literal_error":
            text = f"{at}: {describe_choice(details['input'], quoted_words(context['expected']))}"
        case "union_tag_invalid":
            text = f"{at}: {describe_choice(context['tag'], quoted_words(context['expected_tags']))}"
        case _:
            message = details["msg"].removeprefix("Value error, ")
            text = f"{at}: found {details['input']!r}: {message[0].lower() + message[1:]}" if at else message
    return FieldProblem(path, text)


def quoted_words(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


# ------------------------------------------------------------------------------------- from pydantic's places to a file's
class Place(NamedTuple):
    """A place in a file, and the models whose fields may be written there."""

    path: list[str | int]
    models: list[type[BaseModel]]

    @property
    def names(self) -> list[str]:
        return sorted({name for model in self.models for name in model.model_fields})


class Alternative(NamedTuple):
    """One of the types that a field may have; in a tagged union, with the tag that selects it."""

    type: Any
    tag: str | None = None


def find_place(kind: type[BaseModel], location: FieldPath) -> Place:
    """Return the place in the file of one of pydantic's locations.

    A location also holds the tag of each tagged union that it passes, and the name of a type in a union of others.
    """
    path: list[str | int] = []
    here = [Alternative(kind)]
    for part in location:
        chosen = [Alternative(each.type) for each in here if each.tag is not None and each.tag == part]
        if chosen:
            here = chosen
            continue
        inner = [found for each in here for found in alternatives_below(each.type, part)]
        if not inner:
            break
        path.append(part)
        here = inner
    return Place(path, [each.type for each in here if is_model(each.type)])


def alternatives_below(kind: Any, part: str | int) -> list[Alternative]:
    """Return the types of a model's field, or of what a list or mapping holds; nothing for numbers and words."""
    if is_model(kind):
        field = kind.model_fields.get(part)
        return [*alternatives(field.annotation, field.discriminator)] if field else []
    if get_origin(kind) is dict:
        return [*alternatives(get_args(kind)[1])]
    if get_origin(kind) in (list, tuple):
        return [found for each in get_args(kind) if each is not Ellipsis for found in alternatives(each)]
    return []


def alternatives(annotation: Any, discriminator: Any = None) -> Iterator[Alternative]:
    """Yield the types that an annotation allows; `discriminator` names the field that holds a tagged union's tag."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        for each in metadata:
            if isinstance(each, Tag):
                yield Alternative(inner, each.tag)
                return
            if isinstance(each, FieldInfo) and each.discriminator:
                discriminator = each.discriminator
        yield from alternatives(inner, discriminator)
    elif get_origin(annotation) in (Union, UnionType):
        for each in get_args(annotation):
            yield from alternatives(each, discriminator)
    elif isinstance(discriminator, str) and is_model(annotation):
        for tag in get_args(annotation.model_fields[discriminator].annotation):
            yield Alternative(annotation, tag)
    else:
        yield Alternative(annotation)


def is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


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


def models_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_of(argument)]


def parse_value(text: str) -> Any:
    """Read one value as it would be read after a colon."""
    try:
        return yaml.load(text, StrictLoader)
    except (yaml.YAMLError, RecursionError):
        return text
