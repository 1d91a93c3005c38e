"""The script that starts a detached driver as it was typed: in the same directory, with the same environment."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from gnnscale.contract import files
from workflow.detach.record import SCRIPT_NAME
from workflow.scheduler.registry import SCHEDULERS

# Variables of one session would mislead a later one; secrets do not belong into a file.
LEFT_OUT = re.compile(
    r"_|SHLVL|PWD|OLDPWD|TERM(CAP)?|DISPLAY|XAUTHORITY|WINDOWID|STY|TMUX\w*|SSH_\w+|DBUS_\w+|XDG_(SESSION|RUNTIME|SEAT|VTNR)\w*"
    r"|\w*(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_KEY)\w*"
)


def render_script(command: Sequence[str], folder: Path, environment: Mapping[str, str], ending: Sequence[str]) -> str:
    """Render the script; after the driver, `ending` acts on its exit code in $?; without one, the script becomes the driver."""
    typed = shlex.join(command)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(kept_variables(environment).items())]
    return "\n".join(
        [
            "#!/bin/sh",
            "# Starts the driver of this run as `run --detach` was typed; each `run --detach` writes it anew.",
            *exports,
            f"cd {shlex.quote(str(folder))} || exit",
            *([typed, *ending] if ending else [f"exec {typed}"]),
            "",
        ]
    )


def kept_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a later session needs as well: none of this one, and none of a job in which it is."""
    kept = {name for each in SCHEDULERS.values() for name in each.kept_variables}
    of_jobs = [re.compile(each.option_variables) for each in SCHEDULERS.values() if each.option_variables]
    return {
        name: value
        for name, value in environment.items()
        if name in kept
        or (name.isidentifier() and not LEFT_OUT.fullmatch(name) and not any(each.match(name) for each in of_jobs))
    }


def write_script(root: Path, text: str) -> Path:
    """Write the script, which only its owner may read: it holds the environment."""
    path, mask = root / SCRIPT_NAME, os.umask(0o077)
    try:
        files.write(path, text)
    finally:
        os.umask(mask)
    return path
