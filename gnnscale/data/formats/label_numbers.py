"""Numbers of a label, from an array or from text."""

from __future__ import annotations

from typing import Any

import numpy as np

from gnnscale.data.formats.raw_files import Location


def to_numbers(location: Location, key: str, value: Any, sizes: tuple[int, ...], label: bool = True) -> np.ndarray:
    """Return the numbers in a value, which may be text, as many as one of `sizes` says. A label may be NaN."""
    shown = repr(value)[:60]
    try:
        made = parse_numbers(value)
    except (ValueError, TypeError):
        raise location.fault(f"{key}={shown} is not made of numbers") from None
    if len(made) not in sizes or np.isinf(made).any() or (np.isnan(made).any() and not label):
        raise location.fault(f"{key}={shown}: {' or '.join(map(str, sizes))} finite numbers were expected")
    return made


def parse_numbers(value: Any) -> np.ndarray:
    """Return numbers in one row: those of an array, or of text with spaces, commas or brackets between them."""
    if isinstance(value, str):
        value = value.removeprefix("_JSON").replace("[", " ").replace("]", " ").replace(",", " ").split()
    return np.array(value, float).ravel()


def count_numbers(value: Any) -> int:
    """Return how many numbers a value is made of; 0 if it is made of anything else."""
    try:
        return len(parse_numbers(value))
    except (ValueError, TypeError):
        return 0
