"""The command line: python workflow/run.py [VERB] --site SITE --study STUDY

Verbs other than `run` import neither Parsl nor torch, and answer at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Started by path, Python puts workflow/ first; the packages lie one above.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from workflow.cli.arguments import parser  # noqa: E402
from workflow.cli.commands import OK, VERBS, told  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    verb = getattr(arguments, "verb", None) or "run"
    try:
        code = VERBS[verb](arguments)
        print(end="", flush=True)  # here, where a reader who has gone can be met
        return code
    except (Exception, KeyboardInterrupt) as error:
        code = told(error)
        return OK if isinstance(error, BrokenPipeError) and verb != "run" else code


if __name__ == "__main__":
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="replace")  # of titles for which the terminal has no letters
    sys.exit(main())
