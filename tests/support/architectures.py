"""Small networks of every architecture in the registry, in each of its forms, and options by kind: what tests run over."""

from __future__ import annotations

from typing import get_args

from pydantic import ValidationError

from gnnscale.architectures.base import Architecture
from gnnscale.architectures.registry import ARCHITECTURES, DEFAULT_KIND
from tests.support.structures import CUTOFF


def make_config(options: dict) -> Architecture:
    """Return options of the kind that they name, or of the default."""
    return ARCHITECTURES[options.get("kind", DEFAULT_KIND)](**options)


def choices(field: str, config: type[Architecture]) -> tuple:
    """Return the values of a field that has a few: a Literal's or a bool's."""
    annotation = config.model_fields[field].annotation
    return (False, True) if annotation is bool else get_args(annotation)


def small_variants() -> dict[str, Architecture]:
    """Return the defaults of each architecture and each other choice alone, with direct and with gradient forces."""
    found: dict[str, Architecture] = {}
    for config in ARCHITECTURES.values():
        others = [name for name in config.model_fields if name not in ("kind", "forces")]
        for forces in choices("forces", config):
            for changes in [{}, *({name: value} for name in others for value in choices(name, config))]:
                try:
                    made = config(forces=forces, width=16, depth=2, cutoff=CUTOFF, **changes)
                except ValidationError:
                    continue  # the architecture knows no such network
                if made not in found.values():
                    name = f"{made.label}-{forces}"
                    found["-".join((name, *changes)) if name in found else name] = made
    return found
