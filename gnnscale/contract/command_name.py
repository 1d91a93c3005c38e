"""The words with which the user started the command line, for messages that say what to type next."""

from __future__ import annotations

import os
import shlex
import sys

from gnnscale.contract.places import IS_INSTALLED

COMMAND_VARIABLE = "GNNSCALE_COMMAND"  # set for a program that the command line replaces itself with
CHECKOUT_COMMAND = "python workflow/run.py"


def command_name() -> str:
    """Return `gnnscale` or `python workflow/run.py`, whichever the user typed.

    A stage's process was typed by nobody: it names the command that certainly exists, which a checkout's script does
    without an installation, and the console script only with one.
    """
    if os.environ.get(COMMAND_VARIABLE):
        return os.environ[COMMAND_VARIABLE]
    typed = os.path.basename(sys.argv[0]) if sys.argv else ""
    return "gnnscale" if typed == "gnnscale" or IS_INSTALLED else CHECKOUT_COMMAND


def command_for_site(verb: str) -> str:
    """Return the command of a verb for the site of this command line: with the options --site and --set that were typed."""
    words, given = [], iter(sys.argv[1:])
    for word in given:
        if word.startswith(("--site=", "--set=")):
            words.append(word)
        elif word in ("--site", "--set"):
            words += [word, next(given, "")]
    return " ".join([command_name(), verb, *map(shlex.quote, words)])
