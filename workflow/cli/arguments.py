"""What may be typed after python workflow/run.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from workflow.plan import stage


def hours(text: str) -> float:
    """`nan` would be no limit at all."""
    if not (value := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"found {text}; expected a number of hours")
    return value


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--site", help="a file in sites/, without .yaml (default: local)")
    common.add_argument("--study", help="a file in workflow/studies/, without .yaml, or a path (default: default)")
    common.add_argument("--root", type=Path, help="the run directory (default: runs/STUDY)")
    common.add_argument(
        "--set", action="append", metavar="A.B=C", help="a setting of the site, above its file and yours"
    )
    common.add_argument("--container", action="store_true", help="every stage in the site's image (container.use=true)")
    common.add_argument(
        "--max-node-hours", type=hours, metavar="H", help="refuse to begin what is expected to take more"
    )
    common.add_argument("--until", choices=list(stage.FOLDERS), help="do no stage of a later kind")
    top = argparse.ArgumentParser(
        prog="workflow/run.py",
        parents=[common],
        description="Run a scaling study, start to end; run it again to go on.",
        epilog="Without a verb: run. Exit codes: 0 done, 1 a stage failed, 2 usage, 75 stopped, 130 Ctrl-C.",
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, text: str, *, as_json: bool = False) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text, parents=[common])
        if as_json:
            made.add_argument("--json", action="store_true", help="for programs")
        return made

    verb("run", "plan the study and do what is not done (the default)")
    verb("plan", "what would run, what is done, why, how large and how long", as_json=True).add_argument(
        "--deep", action="store_true", help="hash every output again, whatever its time says"
    )
    verb("status", "how far it is", as_json=True).add_argument("--watch", action="store_true", help="until it ends")
    logs = verb("logs", "what a stage printed in its last attempt")
    logs.add_argument("id", help="for example train/w64-d3-n2000")
    verb("explain", "why a stage is to be run, or why it is done").add_argument("id")
    ending = verb("cancel", "end the batch jobs of the study, or of the named stages")
    ending.add_argument("id", nargs="*")
    ending.add_argument("--stale", action="store_true", help="only jobs of stages that the study has no more")
    verb("report", "where the report is")
    advice = verb("advise", "what to train with a budget: from the laws of a finished study, on any site", as_json=True)
    advice.add_argument("of", metavar="RUN", help="its run directory, or the name of the study")
    advice.add_argument(
        "--gpu-hours", type=float, required=True, metavar="H", help="of one GPU; of one core without GPUs"
    )
    advice.add_argument("--target", choices=["loss", "energy_mae", "force_mae"], default="loss")
    advice.add_argument("--structures", type=float, metavar="D", help="so many unique structures are there, no more")
    check = verb(
        "doctor", "is this site ready? each doubt in a line, with what to do; submits one small job", as_json=True
    )
    check.add_argument("--no-job", action="store_true", help="leave out what only a compute node can tell")
    check.add_argument("--queue", metavar="NAME", help="of that job (default: where it waits least)")
    check.add_argument(
        "--wait", type=float, default=10, metavar="MIN", help="for it to begin, in minutes (default: 10)"
    )
    clean = verb("clean", "remove results that no stage of the study has any more; a dry run unless --yes")
    clean.add_argument("--all", action="store_true", help="the whole run directory")
    clean.add_argument("--yes", action="store_true", help="do it")
    site = verb("sites", "the clusters that are known; the scripts that would be submitted there; a file for a new one")
    site.add_argument("action", choices=["list", "show", "validate", "render", "new"])
    site.add_argument(
        "name", nargs="?", help="one of them, or a file (validate); `new` writes it, or prints without one"
    )
    site.add_argument("of", nargs="?", metavar="study", help="`render`: the study")
    site.add_argument(
        "--out", type=Path, metavar="DIR", help="`render`: write the scripts there instead of printing them"
    )
    image = verb(
        "image", "the container image of a site: build it, look into it, judge it, bring it elsewhere", as_json=True
    )
    image.add_argument("action", choices=["build", "inspect", "verify", "push"])
    image.add_argument(
        "--base",
        default="registry",
        metavar="FROM",
        help="`build`: what it begins with: registry (the "
        "definition's choice), machine (packages as this machine's apt has them) or an image",
    )
    image.add_argument("--to", metavar="PLACE", help="`push`: a directory, or oras://HOST/NAME:TAG")
    return top
