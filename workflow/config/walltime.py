"""TODO: say what a reader finds here."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

WALLTIME = re.compile(r"\d{1,4}:[0-5]\d:[0-5]\d")


def is_walltime(value: object) -> object:
    """Schedulers read the same digits differently (minutes, seconds, days), so there is one form."""
    if not isinstance(value, str) or not WALLTIME.fullmatch(value):
        raise ValueError('expected quoted hours, minutes and seconds, such as "12:00:00"')
    if seconds(value) < 60:
        raise ValueError("shorter than a minute; some schedulers take that for no limit at all")
    return value


def seconds(walltime: str) -> int:
    hours, minutes, rest = map(int, walltime.split(":"))
    return 3600 * hours + 60 * minutes + rest


def walltime(seconds: float) -> str:
    minutes = int(seconds) // 60  # whole ones are what every scheduler understands; down, as it may be a limit
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


Walltime = Annotated[str, BeforeValidator(is_walltime)]
