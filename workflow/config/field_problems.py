"""Turns errors of pydantic into sentences about fields of a YAML file: what was found there and what was expected."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo

from gnnscale.contract.settings import RENAMED_FIELDS

FieldPath = Sequence[str | int]  # names of mappings and numbers in lists, from the top of a file


class FieldProblem(NamedTuple):
    """A field that is wrong, and the sentence about it."""

    path: FieldPath
    text: str


def suggest(word: str, known: Sequence[str]) -> str:
    """Ask "did you mean X?" if a known word is close, and else list what is known."""
    return did_you_mean(word, known) or f"known: {', '.join(sorted(known))}"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def describe_choice(found: object, known: Sequence[str]) -> str:
    """Describe a value that is none of the known ones."""
    if len(known) == 1:
        return f"found {format_value(found)}, expected {known[0]!r}"
    question = did_you_mean(str(found), known)
    return f"found {format_value(found)}, expected one of {', '.join(known)}" + (f"; {question}" if question else "")


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
            text = (
                f"{at}: found {format_value(details['input'])}: {message[0].lower() + message[1:]}" if at else message
            )
    return FieldProblem(path, text)


def format_value(value: object) -> str:
    """Return a value as it is written in YAML, where null, true and false differ from Python's words."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def quoted_words(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


# ------------------------------------------------------------------------------ places in pydantic's errors and in files
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
    types = [Alternative(kind)]
    for part in location:
        chosen = [Alternative(each.type) for each in types if each.tag is not None and each.tag == part]
        if chosen:
            types = chosen
            continue
        inner = [found for each in types for found in alternatives_below(each.type, part)]
        if not inner:
            break
        path.append(part)
        types = inner
    return Place(path, [each.type for each in types if is_model(each.type)])


def alternatives_below(kind: Any, part: str | int) -> list[Alternative]:
    """Return the types of a model's field, or of what a list or mapping holds; nothing for numbers and words."""
    if is_model(kind):
        field = kind.model_fields.get(str(part))
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


def is_model(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def models_of(annotation: Any) -> list[type[BaseModel]]:
    if is_model(annotation):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_of(argument)]
