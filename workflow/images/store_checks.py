"""Checks of an image in the store of a runtime, and of the options with which stages run in it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

from gnnscale.contract.errors import UserError
from workflow.config.container import PODMAN_RUNTIMES
from workflow.config.site import SiteConfig
from workflow.images.fault import Fault
from workflow.images.image_file import architecture, build_command, image_command
from workflow.images.image_store import ask_runtime, find_stored, is_squash_file, read_stored_content
from workflow.images.program_checks import find_program_faults
from workflow.images.runtimes import gpu_flags


def find_store_faults(site: SiteConfig) -> Iterator[Fault]:
    """Find the first reason why stages cannot run in the image: program, options, the image in the store, its content."""
    try:
        faults = [*find_runtime_faults(site)] or [*find_image_faults(site)]
    except UserError as problem:
        faults = [explain_refusal(site, problem)]
    yield from faults


def find_runtime_faults(site: SiteConfig) -> Iterator[Fault]:
    """Find a program that is too old, and options that it does not know: modules of podman-hpc are such options."""
    runtime = site.container.runtime
    if runtime not in PODMAN_RUNTIMES:
        return
    faults = list(find_program_faults(runtime))
    yield from faults
    if not faults:
        yield from find_unknown_options(site, ask_runtime([runtime, "run", "--help"]))


def find_unknown_options(site: SiteConfig, help_text: str) -> Iterator[Fault]:
    own, _, _ = help_text.partition("Podman options follow:")
    modules = re.findall(r"^  (--[\w-]+) ", own, re.M) if own != help_text else []
    known = set(re.findall(r"^\s*(?:-\w, )?(--[\w-]+)", help_text, re.M))
    for option in dict.fromkeys((*gpu_flags(site), *site.container.options(has_ranks=True))):
        name = option.split("=")[0].split()[0]
        if name.startswith("--") and name not in known | {"--net"}:
            here = f"; its modules here: {', '.join(modules)}" if modules else ""
            yield Fault(
                f"{site.container.runtime} knows no option or module {name}{here}",
                "remove it from container.flags or container.rank_flags; a module is a file in PODMANHPC_MODULES_DIR",
            )


def find_image_faults(site: SiteConfig) -> Iterator[Fault]:
    """Find that the image is absent, is not where nodes look for it, or is for other machines."""
    runtime, name, wanted = site.container.runtime, str(site.container.image), architecture(site)
    stored = find_stored(site, name)
    if stored is None:
        yield Fault(
            f"{runtime} has no image {name}",
            f"build it: {build_command()}; or obtain it: {image_command('pull')} --from docker://HOST/NAME@sha256:DIGEST",
        )
    elif site.has_scheduler and not stored.is_migrated:
        yield not_on_nodes(runtime, name)
    elif stored.arch not in ("", wanted):
        yield other_architecture(name, stored.arch, wanted)
    elif can_be_read(site, name):
        yield from find_content_faults(site, name, wanted)


def not_on_nodes(runtime: str, name: str) -> Fault:
    if runtime == "shifter":
        return Fault(f"{name}: shifter has not finished its import", "wait until `shifterimg images` lists it as READY")
    return Fault(
        f"{name}: built, but not migrated: compute nodes do not see it",
        f"{runtime} migrate {name}; then {runtime} images must list it with R/O true",
    )


def other_architecture(name: str, arch: str, wanted: str) -> Fault:
    return Fault(
        f"{name}: built for {arch}, but nodes here are {wanted}", f"build one on such a machine: {build_command()}"
    )


def can_be_read(site: SiteConfig, name: str) -> bool:
    """Return whether this machine can look into the image; that of the container engine needs unsquashfs."""
    return site.container.runtime != "ce" or (is_squash_file(name) and shutil.which("unsquashfs") is not None)


def find_content_faults(site: SiteConfig, name: str, wanted: str) -> Iterator[Fault]:
    """Run a command in the image, and find that it is another one than the plan's."""
    content = read_stored_content(site, name)
    if content.arch != wanted:
        yield other_architecture(name, content.arch, wanted)
    elif content.id != site.container.digest:
        yield Fault(
            f"{name}: the image has the id {content.id[:12]}, {str(site.container.digest)[:12]} is expected",
            f"to look at it: {image_command('verify')}; or leave out container.digest",
        )


def explain_refusal(site: SiteConfig, problem: UserError) -> Fault:
    """Return the fault of an image in which no command runs; programs of another machine are the usual cause."""
    if "exec format error" in problem.message.lower():
        return other_architecture(str(site.container.image), "another architecture", architecture(site))
    return Fault(problem.message, "; ".join(problem.hints))
