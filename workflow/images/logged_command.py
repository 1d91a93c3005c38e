"""TODO: say what a reader finds here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from gnnscale.contract.errors import UserError

STEP_LINE = re.compile(r"gnnscale: step (\d)/(\d) (.*)")


Notify = Callable[[str], None]


def run_logged(
    command: list[str], log: Path, what: str, say: Notify, env: dict[str, str] | None = None, cwd: Path | None = None
) -> None:
    """To its end, with a line for each step that it announces; what it says goes into the log, and its last words out."""
    began, lines = time.monotonic(), []
    say(f"{what} ...")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env=os.environ | (env or {}),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        with open(log, "a") as kept:
            for line in process.stdout:
                kept.write(line)
                lines = [*lines[-11:], line.rstrip()]
                step = STEP_LINE.search(line)
                if step:
                    say(f"  {step[1]}/{step[2]} {step[3]}, after {time.monotonic() - began:.0f} s")
        code = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if code:
        raise UserError(
            f"{what}: {Path(command[0]).name} ended with code {code}",
            *(f"    | {line}" for line in lines if line),
            f"all it said: {log}; what was made so far is kept, so the same command goes on",
        )
    say(f"{what}: done in {time.monotonic() - began:.0f} s")
