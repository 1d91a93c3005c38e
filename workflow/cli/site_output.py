"""Output of `sites`: settings, job scripts, a new site's file."""

from __future__ import annotations

import sys
from pathlib import Path

from gnnscale.contract import files, places
from gnnscale.contract.command_name import command_name
from gnnscale.contract.errors import UserError
from workflow.cli.invocation import Invocation
from workflow.cli.output import to_yaml
from workflow.config import site_files
from workflow.config.site import SiteConfig
from workflow.jobs import render
from workflow.jobs.requests import schedule


def print_site(name: str, config: SiteConfig, action: str) -> None:
    """Print a site as the action has it: a line (list), all settings (show) or that it is valid (validate)."""
    verified = f"{config.scheduler.kind}; verified: {config.verified.level} {config.verified.date}"
    if action == "list":
        print(f"{name:12} {config.title}  ({verified})")
    elif action == "show":
        print(f"# {describe_origin(name)}, with defaults\n{to_yaml(config)}", end="")
    else:
        print(f"{name if site_files.is_path(name) else f'sites/{site_files.site_name(name)}.yaml'}: valid")


def describe_origin(typed: str) -> str:
    """Return which files a site is made of."""
    return (
        f"{typed} alone" if site_files.is_path(typed) else f"sites/{site_files.site_name(typed)}.yaml and your own file"
    )


def output_scripts(invocation: Invocation, out: Path | None) -> None:
    """Print or write the scripts of all jobs of a study, as if nothing of it were done."""
    config = invocation.site
    if not config.has_scheduler:
        raise UserError(
            f"site {invocation.site_name} has no scheduler, so there are no jobs; `run` writes a command.sh for each stage"
        )
    if config.account is None and config.account_rule.required:
        example = config.account_rule.example or "ACCOUNT"
        print(f"no account is given; the scripts contain {example} instead", file=sys.stderr)
        config = config.model_copy(update={"account": example})
    requests = schedule(list(invocation.stages.values()), config)
    for name, text in render.render_scripts(requests, invocation.stages, config, invocation.root).items():
        if out is None:
            print(f"#-------- {name}\n{text}")
        else:
            files.write(out / name, text)
    if out is not None:
        print(f"{len(set(requests.values()))} scripts: {out}")


def output_new_site(name: str | None, text: str) -> None:
    """Print the draft of a site's file, or write it to the folder in which sites are found by name."""
    if name is None:
        print(text, end="")
        return
    if site_files.is_path(name):
        path = Path(name)
    else:
        path = site_files.user_file(name) if places.IS_INSTALLED else places.SITES / f"{name}.yaml"
    if path.exists():
        raise UserError(f"{path}: exists; choose another name")
    files.write(path, text)
    print(f"{path}: written; complete the lines with ???, then: {command_name()} sites validate {name}")
