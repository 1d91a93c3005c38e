"""Every scheduler that a site's file may name: the files of `schedulers` are the list."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType
from typing import TypeVar, get_args

from workflow.config import schedulers
from workflow.config.batch_scheduler import BatchScheduler

T = TypeVar("T")


def find_subclass(module: ModuleType, base: type[T]) -> type[T]:
    """Return the one class that a module defines below `base`."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__}: expected one class below {base.__name__}, found {len(found)}"
    return found[0]


def find_kinds() -> dict[str, type[BatchScheduler]]:
    """Return kind -> options, from the files of the package."""
    names = sorted(file.name for file in pkgutil.iter_modules(schedulers.__path__))
    found = {name: find_subclass(import_module(f"{schedulers.__name__}.{name}"), BatchScheduler) for name in names}
    for name, options in found.items():
        kinds = get_args(options.model_fields["kind"].annotation)
        assert kinds == (name,), f"{options.__module__}: the field `kind` is {kinds}, expected the name of the file"
    return found


KINDS = find_kinds()
LAUNCHERS = {launcher: options for options in KINDS.values() for launcher in options.launchers}  # of one scheduler only
