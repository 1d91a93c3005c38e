"""Facts about queues and their nodes, as a scheduler reports them, for the draft of a site's file. Pure."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple


class QueueFacts(NamedTuple):
    """Limits and nodes of one partition or queue."""

    name: str  # "" = the only one, which has no name
    default: bool
    fewest: int
    most: int  # nodes
    seconds: int | None  # None = no limit
    cores: int
    memory_gb: float  # 0 = not reported
    gpus: int
    model: str  # "" = not reported


class SiteDraft(NamedTuple):
    """Part of a new site's file that is about the scheduler."""

    options: list[str]  # lines of `scheduler:` after its kind
    launcher: str
    flags: str  # of the launcher, as YAML


def leading_number(text: str) -> int:
    """Return the number at the start, such as that of 8+, written where nodes differ."""
    digits = re.match(r"\d+", text)
    return int(digits[0]) if digits else 0


def parse_json(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}
