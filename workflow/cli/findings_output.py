"""TODO: say what a reader finds here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from workflow.cli import live_table
from workflow.config.site import SiteConfig
from workflow.doctor.diagnosis import Finding

COLOURS = {"ok": "32", "bad": "31", "not checked": "33"}


def text(finding: Finding, colour: bool, width: int) -> str:
    """One line, and below it what to do."""
    word = f"{finding.state:11}"
    word = f"\033[{COLOURS[finding.state]}m{word}\033[0m" if colour else word
    lines = [f"  {finding.what:{width}}  {word}  {finding.said}"]
    lines += [f"  {'':{width}}  {'':11}  -> {finding.fix}"] if finding.fix else []
    return "\n".join(lines)


def width(site: SiteConfig) -> int:
    return max(15, *(len(f"queue {name}") for name in site.queues)) if site.queues else 15


def summary(found: Sequence[Finding]) -> str:
    counts = {state: sum(each.state == state for each in found) for state in COLOURS}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def as_json(name: str, found: Sequence[Finding]) -> dict[str, Any]:
    return {
        "site": name,
        "ready": not any(each.state == "bad" for each in found),
        "findings": [f._asdict() for f in found],
    }


def say_to(stream: Any) -> Callable[[str], None]:
    """What is being waited for, in a line that is written over; nothing where nobody watches."""
    if not live_table.live(stream):
        return lambda words: None

    def say(words: str) -> None:
        stream.write(f"\r\033[K{('  ' + words)[: os.get_terminal_size(stream.fileno()).columns - 1] if words else ''}")
        stream.flush()

    return say
