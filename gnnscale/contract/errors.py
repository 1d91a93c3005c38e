"""TODO: say what a reader finds here."""

from __future__ import annotations


class Problem(Exception):
    """What the user must put right: one line a problem. Never shown with a traceback."""

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))


class Refusal(Exception):
    """Something that only the user can put right: said in words, without a traceback."""

    def __init__(self, message: str, hint: str = "", kind: str = "configuration"):
        super().__init__(message)
        self.hint, self.kind = hint, kind
