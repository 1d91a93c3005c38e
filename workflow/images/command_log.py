"""Runs the long commands of a build: all output goes to a log, each announced step to the user, a failure with its cause."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract.errors import UserError
from workflow.images.failed_commands import explain_failure

STEP_LINE = re.compile(r"gnnscale: step (\d)/(\d) (.*)")
LINES_SHOWN = 12  # of a failed command
Notify = Callable[[str], None]


class CommandLog(NamedTuple):
    """A file that receives the output of commands, and a function that receives lines for the user."""

    path: Path
    notify: Notify

    def succeeds(self, command: list[str]) -> bool:
        """Tell whether a short command, such as a question to a store, ends well."""
        with open(self.path, "a") as log:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return done.returncode == 0

    def run(self, command: list[str], product: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
        """Run a command to its end and return its last line; raise with its last lines if it fails.

        `product` is what the user sees.
        """
        if shutil.which(command[0]) is None:
            raise UserError(f"no {command[0]} on PATH", "install it, or load the module that provides it")
        began = time.monotonic()
        last_lines: list[str] = []
        self.notify(f"{product} ...")
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
        assert process.stdout is not None
        try:
            with open(self.path, "a") as log:
                for line in process.stdout:
                    log.write(line)
                    last_lines = [*last_lines[1 - LINES_SHOWN :], line.rstrip()]
                    if step := STEP_LINE.search(line):
                        self.notify(f"  {step[1]}/{step[2]} {step[3]}, after {time.monotonic() - began:.0f} s")
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if code:
            raise UserError(
                f"{product}: {Path(command[0]).name} ended with code {code}",
                *(f"    | {line}" for line in last_lines if line),
                *explain_failure(command[0], last_lines),
                f"all of its output: {self.path}; finished parts are kept, so the same command continues",
            )
        self.notify(f"{product}: done in {time.monotonic() - began:.0f} s")
        return last_lines[-1] if last_lines else ""
