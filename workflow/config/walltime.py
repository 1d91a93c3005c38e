"""Walltimes in site files: checked text such as "12:00:00", converted from and to seconds."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

SECONDS_PER_DAY = 86400
WALLTIME_PATTERN = re.compile(r"\d{1,4}:[0-5]\d:[0-5]\d")


def require_walltime(value: object) -> object:
    """Raise unless the value is written as HH:MM:SS: schedulers read other forms differently (minutes, seconds, days)."""
    if not isinstance(value, str) or not WALLTIME_PATTERN.fullmatch(value):
        raise ValueError('expected quoted hours, minutes and seconds, such as "12:00:00"')
    if to_seconds(value) < 60:
        raise ValueError("shorter than a minute, which some schedulers read as no limit at all")
    return value


def to_seconds(walltime: str) -> int:
    hours, minutes, rest = map(int, walltime.split(":"))
    return 3600 * hours + 60 * minutes + rest


def format_walltime(seconds: float) -> str:
    """Return HH:MM:00, rounded down, as it may be a limit; every scheduler understands whole minutes."""
    minutes = int(seconds) // 60
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


Walltime = Annotated[str, BeforeValidator(require_walltime)]
