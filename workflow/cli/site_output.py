"""TODO: say what a reader finds here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gnnscale.contract import files, places
from gnnscale.contract.errors import Problem
from workflow.cli.output import as_yaml
from workflow.config.site import SiteConfig
from workflow.jobs import render
from workflow.jobs import requests as queueing


def site(name: str, config: SiteConfig, action: str) -> None:
    verified = f"{config.scheduler.kind}; verified: {config.verified.level} {config.verified.date}"
    if action == "list":
        print(f"{name:12} {config.title}  ({verified})")
    elif action == "show":
        print(f"# sites/{name}.yaml and what is yours, with defaults\n{as_yaml(config)}", end="")
    else:
        print(f"sites/{name}.yaml: valid")


def scripts(asked: Any, out: Path | None) -> None:
    """Of all jobs of a study, as if nothing of it were done."""
    config = asked.site
    if not config.batch:
        raise Problem(
            f"site {asked.site_name} has no scheduler, so there are no jobs; `run` writes a command.sh a stage"
        )
    if config.account is None and config.account_rule.required:
        example = config.account_rule.example or "ACCOUNT"
        print(f"no account is given; the scripts say {example}", file=sys.stderr)
        config = config.model_copy(update={"account": example})
    requests = queueing.schedule(list(asked.stages.values()), config)
    for name, text in render.scripts(requests, asked.stages, config, asked.root).items():
        if out is None:
            print(f"#-------- {name}\n{text}")
        else:
            files.write(out / name, text)
    if out is not None:
        print(f"{len(set(requests.values()))} scripts: {out}")


def image(file: Path, found: dict[str, Any], as_json: bool) -> None:
    """What an image says of itself."""
    if as_json:
        print(json.dumps(found, indent=1))
        return
    content = found["content"]
    print(f"{file.resolve()}: {file.stat().st_size / 1e6:.0f} MB")
    for name in ("id", "accelerator", "arch", "python", "version", "commit", "base", "lock", "recipe"):
        print(f"  {name:12} {content[name]}")
    print(
        f"  {len(content['code'])} files of code, {len(content['system'])} packages of the system, "
        f"{len(content['packages'])} of Python:"
    )
    print("\n".join(f"    {line}" for line in content["packages"]))


def new_site(name: str | None, text: str) -> None:
    if name is None:
        print(text, end="")
        return
    path = places.SITES / f"{name}.yaml"
    if path.exists():
        raise Problem(f"{path}: exists; choose another name")
    files.write(path, text)
    print(f"{path}: written; look at what it says, then: python workflow/run.py sites validate {name}")
