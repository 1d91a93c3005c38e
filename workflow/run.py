"""The command line, started as `gnnscale` where the package is installed, and by path in a checkout.

Verbs other than `run` import neither Parsl nor torch, and answer at once.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

if not __package__:  # started by its path, Python looks for modules in workflow/; the packages lie one level above
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from gnnscale.contract.exit_codes import DONE
from workflow.cli.arguments import build_parser
from workflow.cli.commands import VERBS
from workflow.cli.drive import report_error


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # titles may have letters that the terminal lacks
    arguments = build_parser().parse_args(argv)
    verb = arguments.verb or "run"
    try:
        code = VERBS[verb](arguments)
        print(end="", flush=True)  # inside `try`: the reader of a pipe may have closed it
        return code
    except (Exception, KeyboardInterrupt) as error:
        code = report_error(error)
        return DONE if isinstance(error, BrokenPipeError) and verb != "run" else code


if __name__ == "__main__":
    sys.exit(main())
