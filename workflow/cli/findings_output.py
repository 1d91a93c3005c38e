"""The findings of `doctor` as lines and as JSON, and its line of progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from workflow.cli import live_table
from workflow.config.site import SiteConfig
from workflow.doctor.diagnosis import Finding

COLOURS = {"ok": "32", "bad": "31", "not checked": "33"}  # codes of ANSI terminals
MIN_LABEL_WIDTH = 15


def format_finding(finding: Finding, colour: bool, width: int) -> str:
    """Return the line of a finding, and below it what to do."""
    word = f"{finding.state:11}"
    word = f"\033[{COLOURS[finding.state]}m{word}\033[0m" if colour else word
    lines = [f"  {finding.what:{width}}  {word}  {finding.said}"]
    lines += [f"  {'':{width}}  {'':11}  -> {finding.fix}"] if finding.fix else []
    return "\n".join(lines)


def label_width(site: SiteConfig) -> int:
    """Return the width of the first column."""
    return max([MIN_LABEL_WIDTH, *(len(f"queue {name}") for name in site.queues)])


def summarize(findings: Sequence[Finding]) -> str:
    """Return how many findings there are of each state."""
    counts = {state: sum(each.state == state for each in findings) for state in COLOURS}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def encode_findings(name: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings as JSON has them."""
    return {
        "site": name,
        "ready": not any(each.state == "bad" for each in findings),
        "findings": [f._asdict() for f in findings],
    }


def progress_writer(stream: TextIO) -> Callable[[str], None]:
    """Return a function that overwrites one line with the present step; without a terminal it does nothing."""
    if not live_table.can_rewrite_lines(stream):
        return lambda words: None

    def say(words: str) -> None:
        stream.write(f"\r\033[K{('  ' + words)[: os.get_terminal_size(stream.fileno()).columns - 1] if words else ''}")
        stream.flush()

    return say
