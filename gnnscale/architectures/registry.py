"""Every architecture that there is: the files of this package are the list. No torch, so that plans can read settings."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union

from pydantic import BeforeValidator, Field

from gnnscale import architectures
from gnnscale.architectures.base import Architecture

C = TypeVar("C")
DEFAULT_KIND = "egnn"


def find_class(module: ModuleType, base: type[C]) -> type[C] | None:
    """Return the class that a module defines below `base`, or None; two would leave open which of them is meant."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    assert len(found) < 2, f"{module.__name__} defines {' and '.join(each.__name__ for each in found)}: keep one"
    return found[0] if found and found[0] is not base else None


def find_architectures() -> dict[str, type[Architecture]]:
    """Return kind -> options, from the files of this package that define some."""
    found: dict[str, type[Architecture]] = {}
    for file in pkgutil.iter_modules(architectures.__path__):
        name = f"{architectures.__name__}.{file.name}"
        config = None if name == __name__ else find_class(import_module(name), Architecture)  # type: ignore[type-abstract] # it makes none
        if config:
            kind = config.model_fields["kind"].default
            assert kind == file.name, f"{name}: {config.__name__}.kind is {kind!r}, expected the name of the file"
            found[kind] = config
    return found


def add_default_kind(value: Any) -> Any:
    """Add the default kind to options that name none."""
    return {"kind": DEFAULT_KIND, **value} if isinstance(value, dict) else value


ARCHITECTURES = find_architectures()


def complete_options(options: Any) -> Any:
    """Return options with the defaults of their kind in place of what is missing and of what only another kind has.

    Unknown names stay, for the check of the options to report; so does everything if there is no such kind.
    """
    config = ARCHITECTURES.get(options.get("kind", DEFAULT_KIND)) if isinstance(options, dict) else None
    if config is None:
        return options
    foreign = {name for other in ARCHITECTURES.values() for name in other.model_fields} - set(config.model_fields)
    return config().model_dump() | {name: value for name, value in options.items() if name not in foreign}


if TYPE_CHECKING:
    ModelConfig = Architecture
else:
    _any = Union[tuple(ARCHITECTURES.values())]  # noqa: UP007, as its members are known when this runs
    if len(ARCHITECTURES) > 1:  # pydantic wants two for a tagged union
        _any = Annotated[_any, Field(discriminator="kind")]
    ModelConfig = Annotated[_any, BeforeValidator(add_default_kind)]


def default_model() -> ModelConfig:
    """Return the architecture of a study that names none."""
    return ARCHITECTURES[DEFAULT_KIND]()
