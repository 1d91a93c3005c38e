"""Faults of images and of the programs that build and run them, each with what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gnnscale.contract.errors import UserError


class Fault(NamedTuple):
    """A reason why no stage can run in the image here, or none can be built, and what to do."""

    message: str
    hint: str


def raise_faults(faults: Iterable[Fault]) -> None:
    """Raise one error with all faults, if there are any."""
    lines = [f"{fault.message}\n  {fault.hint}" for fault in faults]
    if lines:
        raise UserError("\n".join(lines))
