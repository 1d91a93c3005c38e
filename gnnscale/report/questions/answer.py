"""The answer to a question, with its evidence and what this evidence does not support, and its HTML."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Answer(NamedTuple):
    """An answer in words, sentences of evidence for it, and claims that the evidence does not support."""

    question: str
    answer: str
    evidence: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()


def render_answers(answers: list[Answer], prose: Callable[[str], str]) -> str:
    """Render each question with its answer, evidence and limits; `prose` turns a sentence into HTML."""
    return "".join(render_answer(answer, prose) for answer in answers)


def render_answer(answer: Answer, prose: Callable[[str], str]) -> str:
    parts = [f'<h3>{prose(answer.question)}</h3><p class="answer">{prose(answer.answer)}</p>']
    if answer.evidence:
        parts.append(f"<ul>{''.join(f'<li>{prose(s)}</li>' for s in answer.evidence)}</ul>")
    if answer.unsupported:
        items = "".join(f"<li>{prose(s)}</li>" for s in answer.unsupported)
        heading = '<p class="note">Not supported by this evidence:</p>'
        parts.append(f'<div class="limits">{heading}<ul>{items}</ul></div>')
    return "".join(parts)
