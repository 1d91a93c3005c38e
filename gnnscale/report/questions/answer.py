"""TODO: say what a reader finds here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Answer(NamedTuple):
    question: str
    answer: str
    evidence: tuple[str, ...]
    unsupported: tuple[str, ...]


def render_answers(asked: list[Answer], prose: Callable[[str], str]) -> str:
    """Each question with its answer, the evidence, and what it does not support; `prose` turns sentences into HTML."""
    parts = []
    for a in asked:
        parts.append(f'<h3>{prose(a.question)}</h3><p class="answer">{prose(a.answer)}</p>')
        if a.evidence:
            parts.append(f"<ul>{''.join(f'<li>{prose(s)}</li>' for s in a.evidence)}</ul>")
        if a.unsupported:
            items = "".join(f"<li>{prose(s)}</li>" for s in a.unsupported)
            parts.append(
                f'<div class="limits"><p class="note">Not supported by this evidence:</p><ul>{items}</ul></div>'
            )
    return "".join(parts)
