"""The command-line parser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from gnnscale.contract.command_name import command_name
from gnnscale.contract.exit_codes import USAGE
from workflow.config.field_problems import suggest
from workflow.plan.stage import FOLDER_OF_KIND

SHELLS = ("bash", "zsh", "fish")
RENAMED_KINDS = {"shards": "convert_part", "levers": "memory_levers"}  # stage kinds of earlier versions


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, with the nearest known word."""

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        renamed = RENAMED_KINDS.get(str(value), "")
        hint = f"it is called {renamed!r} now" if renamed in choices else suggest(str(value), choices)
        if isinstance(action, argparse._SubParsersAction):
            raise argparse.ArgumentError(None, f"no verb {value!r}; {hint}")
        raise argparse.ArgumentError(action, f"found {value!r}; {hint}")

    def error(self, message: str) -> NoReturn:
        print(f"gnnscale: {message} (`{self.prog} --help` explains)", file=sys.stderr)
        sys.exit(USAGE)


def parse_hours(text: str) -> float:
    """Read a number of hours; `nan` is refused, since it would be no limit at all."""
    if not (value := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"found {text}; expected a number of hours")
    return value


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    common = common_options()
    top = Parser(
        prog=command_name(),
        parents=[common],
        description="Run a scaling study from raw structures to a report. Run it again to continue.",
        epilog="Without a verb: run. Exit codes: 0 done, 1 a stage failed, 2 usage, 69 another driver is at work, "
        "75 stopped, 130 Ctrl-C or `stop`.",
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB")

    def add_verb(name: str, text: str, *, as_json: bool = False) -> argparse.ArgumentParser:
        parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common])
        if as_json:
            parser.add_argument("--json", action="store_true", help="print JSON, for programs")
        return parser

    add_run_verbs(add_verb)
    add_advise(add_verb)
    add_doctor(add_verb)
    add_sites(add_verb)
    add_image(add_verb)
    add_data(add_verb)
    # All its words go to gnnscale/stages/fit_csv.py, which has the options.
    text = "fit a scaling law to the points of a CSV file of your own"
    fit = verbs.add_parser("fit", help=text, add_help=False, prefix_chars="\0")
    fit.add_argument("words", nargs="*", metavar="POINTS.csv")
    completion = add_verb("completion", "print the completion script of a shell")
    completion.add_argument("shell", choices=SHELLS)
    return top


def common_options() -> Parser:
    """Return the options that every verb takes."""
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--site", help="a file in sites/, without .yaml, or a path (default: local)")
    common.add_argument("--study", help="a file in workflow/studies/, without .yaml, or a path (default: default)")
    common.add_argument("--root", type=Path, help="the run directory (default: runs/STUDY)")
    common.add_argument(
        "--set", action="append", metavar="A.B=C", help="override a setting of the site's file and of your own"
    )
    common.add_argument("--container", action="store_true", help="run stages in the site's image (container.use=true)")
    common.add_argument(
        "--max-node-hours", type=parse_hours, metavar="H", help="start nothing if the jobs are expected to take more"
    )
    common.add_argument("--until", choices=list(FOLDER_OF_KIND), help="stop after this kind of stage")
    return common


AddVerb = Callable[..., argparse.ArgumentParser]


def add_run_verbs(add_verb: AddVerb) -> None:
    """Add the verbs that concern one run of a study."""
    running = add_verb("run", "plan the study and run the stages that are not done (the default)")
    running.add_argument(
        "--detach",
        action="store_true",
        help="start the driver so that it outlives this session, by the site's `driver.way`",
    )
    add_verb("stop", "stop the driver of a run on whatever host it is, as Ctrl-C there does; its jobs go on")
    plan = add_verb("plan", "list the stages: done or not, why they would run, their size and time", as_json=True)
    plan.add_argument(
        "--deep", action="store_true", help="hash every output again, whatever its modification time says"
    )
    plan.add_argument("--all", action="store_true", help="list each stage, also of a large study")
    progress = add_verb("status", "show the progress of a run", as_json=True)
    progress.add_argument("--watch", action="store_true", help="repeat until the run ends")
    progress.add_argument(
        "--all", action="store_true", help="list each stage that runs, waits in the queue or has failed"
    )
    logs = add_verb("logs", "print the output of a stage's last attempt")
    logs.add_argument("id", help="a stage, for example train/w64-d3-n2000")
    add_verb("explain", "say why a stage runs, and which files its key covers").add_argument(
        "id", help="a stage, for example train/w64-d3-n2000"
    )
    ending = add_verb("cancel", "end the batch jobs of the study, or of the named stages")
    ending.add_argument("id", nargs="*", help="stages (default: all of them)")
    ending.add_argument("--stale", action="store_true", help="only jobs of stages that the study no longer has")
    add_verb("report", "print the path of the report")
    clean = add_verb("clean", "list results of stages that the study no longer has; remove them with --yes")
    clean.add_argument("--all", action="store_true", help="remove the whole run directory")
    clean.add_argument("--yes", action="store_true", help="remove them")


def add_advise(add_verb: AddVerb) -> None:
    """Add the verb that recommends a training."""
    advice = add_verb(
        "advise", "recommend what to train with a budget, from the laws of a finished study, on any site", as_json=True
    )
    advice.add_argument("finished", metavar="RUN", help="the finished run: its directory, or the name of the study")
    advice.add_argument(
        "--gpu-hours", type=float, required=True, metavar="H", help="hours of one GPU, or of one core without GPUs"
    )
    advice.add_argument("--target", choices=["loss", "energy_mae", "force_mae"], default="loss", help="default: loss")
    advice.add_argument("--structures", type=float, metavar="D", help="the number of unique structures that exist")


def add_doctor(add_verb: AddVerb) -> None:
    """Add the verb that examines a machine."""
    check = add_verb(
        "doctor", "check whether a site is ready, with a fix for each fault; submits one small job", as_json=True
    )
    check.add_argument("--no-job", action="store_true", help="skip the checks that need a compute node")
    check.add_argument("--queue", metavar="NAME", help="queue of the job (default: where it is likely to wait least)")
    check.add_argument(
        "--wait", type=float, default=10, metavar="MIN", help="minutes to wait for the job to start (default: 10)"
    )


def add_sites(add_verb: AddVerb) -> None:
    """Add the verb for site files."""
    site = add_verb(
        "sites", "list, show or validate site files, render the job scripts of a study, or draft a new site file"
    )
    site.add_argument("action", choices=["list", "show", "validate", "render", "new"])
    site.add_argument(
        "name", nargs="?", help="a known site, or the path of a file; without one, `new` prints the draft"
    )
    site.add_argument("render_study", nargs="?", metavar="study", help="`render`: the study (default: default)")
    site.add_argument(
        "--out", type=Path, metavar="DIR", help="`render`: write the scripts there instead of printing them"
    )


def add_data(add_verb: AddVerb) -> None:
    """Add the verb for published data sets."""
    data = add_verb("data", "list, fetch or locate published data sets, on a machine with a network", as_json=True)
    data.add_argument("action", choices=["list", "fetch", "curl"])
    data.add_argument("sets", nargs="*", metavar="NAME", help="published sets, such as ani1x or oc20/200K")
    data.add_argument(
        "--to", type=Path, metavar="DIR", help="the folder of all sets (default: filesystems.data of the site)"
    )


def add_image(add_verb: AddVerb) -> None:
    """Add the verb for container images."""
    image = add_verb("image", "build, inspect, verify, push or pull the container image of a site", as_json=True)
    image.add_argument("action", choices=["build", "inspect", "verify", "push", "pull", "context"])
    image.add_argument(
        "--base",
        default="registry",
        metavar="FROM",
        help="`build`: the base image: registry (the definition's choice), machine (packages as this machine's apt "
        "has them) or the file of an image",
    )
    image.add_argument(
        "--to",
        metavar="PLACE",
        help="`push`: a directory or oras://HOST/NAME:TAG for an image file; docker://HOST/NAME:TAG or oci-archive:FILE "
        "for an image of podman",
    )
    image.add_argument(
        "--from",
        metavar="PLACE",
        help="`pull`: docker://HOST/NAME@sha256:DIGEST, oras://..., oci-archive:FILE or FILE.sif",
    )
    image.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="`context`: write there all that a machine elsewhere builds the image from",
    )
