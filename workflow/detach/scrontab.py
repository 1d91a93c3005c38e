"""An entry of Slurm's scrontab that starts a driver and, where it was killed, starts it again."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gnnscale.contract.errors import UserError
from gnnscale.contract.exit_codes import BUSY, STOPPED, TERMINATED
from workflow.scheduler.interface import SchedulerUnreachable, run_command

EVERY_FEW_MINUTES = "*/5 * * * *"  # Slurm starts no second instance while one runs
TIMEOUT = 60.0


def render_entry(name: str, script: Path, log: Path, options: Sequence[str]) -> str:
    """Render the entry: two comments mark it, so that it is found again."""
    options = [*options, f"-J {name}", f"-o {log}", "--open-mode=append"]
    return "\n".join(
        [
            begin_mark(name),
            *(f"#SCRON {option}" for option in options),
            f"{EVERY_FEW_MINUTES} /bin/sh {shlex.quote(str(script))}",
            end_mark(name),
            "",
        ]
    )


def begin_mark(name: str) -> str:
    return f"# gnnscale {name}: begin"


def end_mark(name: str) -> str:
    return f"# gnnscale {name}: end"


def render_ending(stop_command: Sequence[str]) -> list[str]:
    """Return the end of the driver's script: the entry goes once there is nothing to start again.

    A driver that was killed, or that found another one at work, leaves the entry.
    """
    return [
        "case $? in",
        f"    {BUSY}) exit 0 ;;",
        f"    {STOPPED} | 13[1-9] | {TERMINATED} | 15[0-9]) exit 0 ;;",
        f"    *) exec {shlex.join(stop_command)} ;;",
        "esac",
    ]


def add_entry(name: str, entry: str) -> None:
    """Add the entry to the user's scrontab, in place of an earlier one of this name."""
    install(without_entry(read_table(), name) + entry)


def remove_entry(name: str) -> bool:
    """Remove the entry from the user's scrontab; tell whether it was there."""
    table = read_table()
    left = without_entry(table, name)
    if left != table:
        install(left)
    return left != table


def without_entry(table: str, name: str) -> str:
    """Return the table without the entry, also one whose lines Slurm has disabled since its job was cancelled."""
    pattern = rf"^{re.escape(begin_mark(name))}\n.*?^{re.escape(end_mark(name))}\n?"
    return re.sub(pattern, "", table, flags=re.M | re.S)


def read_table() -> str:
    done = call_scrontab("-l")
    if done.returncode and not re.search("no crontab", done.stderr + done.stdout, re.I):
        raise UserError(f"scrontab -l: {describe_refusal(done.stderr + done.stdout)}", *HINTS)
    return "" if done.returncode else done.stdout


def install(table: str) -> None:
    with tempfile.NamedTemporaryFile("w", prefix="gnnscale-scrontab-") as file:
        file.write(table)
        file.flush()
        done = call_scrontab(file.name)
    if done.returncode:
        raise UserError(f"scrontab refuses the entry: {describe_refusal(done.stderr + done.stdout)}", *HINTS)


def call_scrontab(word: str) -> subprocess.CompletedProcess[str]:
    try:
        return run_command(["scrontab", word], TIMEOUT)
    except SchedulerUnreachable as error:
        raise UserError(str(error), *HINTS) from None


HINTS = (
    "`sites show` says whether this site wants to be asked for access first",
    "choose another way: --set driver.way=tmux",
)


def describe_refusal(printed: str) -> str:
    return " ".join(printed.split()) or "it gives no reason"
