"""Sessions and services in which a driver outlives its terminal: tmux, screen, systemd, or a session of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract.errors import UserError
from workflow.config.site import DriverWay

START_SECONDS = 30.0


class Session(NamedTuple):
    """A way to start a script: the command that starts it, and the one by which its user looks at it."""

    command: list[str]
    look: str
    end: str  # what still ends it, for the user


def default_way() -> DriverWay:
    """Return the way of a site that names none."""
    return "tmux" if shutil.which("tmux") else "nohup"


def session_for(way: DriverWay, name: str, script: Path, log: Path) -> Session:
    """Return the session of a way; what the driver prints goes to its log, and in tmux and screen to their window too."""
    run, words = f"/bin/sh {shlex.quote(str(script))}", shlex.quote(str(log))
    both = f"{run} 2>&1 | tee -ai {words}"  # -i: Ctrl-C in the window is for the driver
    outputs = [f"--property=Standard{each}=append:{log}" for each in ("Output", "Error")]
    logout = "it ends when this machine does, or where the site ends all processes at logout"
    return {
        "tmux": Session(["tmux", "new-session", "-d", "-s", name, both], f"tmux attach -t {name}", logout),
        "screen": Session(["screen", "-dmS", name, "sh", "-c", both], f"screen -r {name}", logout),
        "nohup": Session(["sh", "-c", f"exec {run} >>{words} 2>&1"], f"tail -f {words}", logout),
        "service": Session(
            ["systemd-run", "--user", "--collect", f"--unit={name}", *outputs, "/bin/sh", str(script)],
            f"systemctl --user status {name}",
            "it ends when this machine does",
        ),
    }[way]


def start_session(way: DriverWay, session: Session) -> None:
    """Start it, in a session of the system's that no terminal controls; raise if it does not start."""
    program = session.command[0]
    if shutil.which(program) is None:
        raise UserError(
            f"{program} is not there, and the site's driver.way is {way}",
            "choose another: --set driver.way=nohup (or tmux, screen, service)",
        )
    if way == "nohup":
        subprocess.Popen(session.command, stdin=subprocess.DEVNULL, start_new_session=True, cwd="/")
        return
    try:
        done = subprocess.run(
            session.command, capture_output=True, text=True, timeout=START_SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{program} has not answered within {START_SECONDS:.0f} s", "type the same command again"
        ) from None
    if done.returncode:
        said = " ".join((done.stderr + done.stdout).split()) or f"it ended with code {done.returncode}"
        raise UserError(f"{program} does not start the driver: {said}", *explain_refusal(way))


def explain_refusal(way: DriverWay) -> list[str]:
    """Return what to type where a way is refused for a reason that is known."""
    if way == "service":
        user = os.environ.get("USER", "$USER")
        return [
            f"user services outlive a session where `loginctl enable-linger {user}` was typed; or --set driver.way=tmux"
        ]
    return ["choose another way: --set driver.way=nohup"]
