"""The actions of `image`: what each needs on the command line, and what it prints."""

from __future__ import annotations

import argparse
import json
from typing import Any

from gnnscale.contract.errors import UserError
from workflow.config.site import SiteConfig
from workflow.images import build_image, build_script, pull_image, push_image, verify_image


def run_action(site: SiteConfig, arguments: argparse.Namespace) -> None:
    """Do what `image ACTION` says for the image of a site."""
    raise_if_no_runtime(site)
    if arguments.action == "build":
        build_image.build(site, arguments.base, print_line)
    elif arguments.action == "verify":
        verify_image.verify(site, print_line)
    elif arguments.action == "inspect":
        print_image(*verify_image.inspect(site), as_json=arguments.json)
    elif arguments.action == "pull":
        pull_image.pull(site, given(arguments, "from", "docker://HOST/NAME@sha256:DIGEST"), print_line)
    elif arguments.action == "context":
        build_script.write_folder(site, given(arguments, "out", "DIRECTORY"), print_line)
    else:
        push_image.push(site, given(arguments, "to", "docker://HOST/NAME:TAG, or a directory"), print_line)


def raise_if_no_runtime(site: SiteConfig) -> None:
    if site.container.runtime == "none":
        raise UserError(
            f"{site.title}: its file names no container runtime",
            "name the one that it has: --set container.runtime=apptainer (or singularity, podman, podman-hpc, shifter, ce)",
            "or for every command, in your own file for this site: container: {runtime: NAME}",
        )


def given(arguments: argparse.Namespace, option: str, example: str) -> Any:
    """Return the value of an option that this action needs."""
    value = getattr(arguments, option)
    if value is None:
        raise UserError(f"image {arguments.action}: --{option} is missing", f"add --{option} {example}")
    return value


def print_image(name: str, description: dict[str, Any], *, as_json: bool) -> None:
    """Print the content that an image was built with."""
    if as_json:
        print(json.dumps(description, indent=1))
        return
    content = description["content"]
    print(name)
    for key in ("id", "accelerator", "arch", "python", "version", "commit", "base", "lock", "recipe"):
        print(f"  {key:12} {content[key]}")
    counts = [f"{len(content[key])} {text}" for key, text in (("code", "files of code"), ("system", "system packages"))]
    print(f"  {', '.join(counts)}, {len(content['packages'])} Python packages:")
    print("\n".join(f"    {line}" for line in content["packages"]))


def print_line(line: str) -> None:
    print(line, flush=True)
