"""Errors that only the user can correct, the words for errors of the operating system, and how both are printed."""

from __future__ import annotations

import os
import sys
from typing import Literal

ErrorKind = Literal["configuration", "data", "out-of-memory", "disk-full", "permission", "application"]


class UserError(Exception):
    """An error that only the user can correct. It is printed without a traceback.

    `message` says what was found, where, and what was expected; each of `hints` says what to do or type next.
    """

    def __init__(self, message: str, *hints: str, kind: ErrorKind = "configuration"):
        super().__init__(message, *hints)
        self.message, self.hints, self.kind = message, hints, kind

    def __str__(self) -> str:
        return "\n".join((self.message, *self.hints))


class BadFile(UserError):
    """A file that cannot be read as what it should be: missing, cut, altered or of another format."""

    def __init__(self, message: str, *hints: str, kind: ErrorKind = "data"):
        super().__init__(message, *hints, kind=kind)


def reason_of(error: OSError) -> str:
    """Return why the system refused; an OSError raised by a library may have a text in place of a number."""
    reason = error.strerror or (os.strerror(error.errno) if error.errno else "")
    return reason.lower() if reason else str(error) or type(error).__name__


def describe_os_error(error: OSError) -> str:
    """Return the reason, after the name of the file where there is one."""
    return f"{error.filename}: {reason_of(error)}" if error.filename is not None else reason_of(error)


def print_error(error: UserError | OSError, prefix: str) -> None:
    """Print an error on standard error as `PREFIX: MESSAGE`, and each hint on a line of its own."""
    message, hints = (error.message, error.hints) if isinstance(error, UserError) else (describe_os_error(error), ())
    print("\n".join((f"{prefix}: {message}", *(f"  {hint}" for hint in hints))), file=sys.stderr, flush=True)
