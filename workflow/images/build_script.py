"""Writes a folder from which an image can be built where this checkout is not: its content, and a script with all commands.

It serves sites on which nothing can be built from here (`image context`), and jobs that build on a compute node.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.errors import UserError
from gnnscale.contract.places import CONTAINERS
from workflow.config.site import SiteConfig
from workflow.images import apptainer
from workflow.images.base_image import oci_base_source
from workflow.images.build_context import write_context
from workflow.images.build_oci import build_words, image_name, oci_program, run_words
from workflow.images.build_sif import definition_words
from workflow.images.command_log import Notify
from workflow.images.environment import IMAGE_HOME, check_words
from workflow.images.image_file import accelerator, architecture, has_image_file
from workflow.images.recipe import CONTAINERFILE, Recipe, read_recipe
from workflow.images.wheels import pip_words

SCRIPT = "build.sh"


def write_folder(site: SiteConfig, out: Path, notify: Notify) -> None:
    """Write the context of a build and its script into a new folder."""
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty", "name another folder, or remove this one")
    recipe = read_recipe(accelerator(site), "registry")
    write_build_folder(site, recipe, out)
    program = site.container.runtime if has_image_file(site) else oci_program(site)
    needed = f"{architecture(site)}, a network, Python {recipe.arguments['python']} and {program}"
    notify(f"{out}: context, {recipe.definition.name} and {SCRIPT}")
    notify(f"copy it to a machine with {needed} (or what else `sh {SCRIPT}` names); there: sh {SCRIPT} {program}")


def write_build_folder(site: SiteConfig, recipe: Recipe, out: Path) -> None:
    write_context(recipe, out / "context")
    shutil.copy(recipe.definition, out)
    shutil.copy(CONTAINERS / CONTAINERFILE, out / "context")
    files.write(out / SCRIPT, script(site, recipe))


def script(site: SiteConfig, recipe: Recipe) -> str:
    """Return the script that fetches the wheels, builds, tests, and writes the image into a file if one is named."""
    name = image_name(site, recipe)
    stem = name.rpartition(":")[2]
    python = f"python{recipe.arguments['python']}"
    wheels = pip_words(python, "wheels", "context/constraints.txt", "context/requirements.txt")
    return "\n".join(
        [
            "#!/bin/sh",
            f"# Builds the image {stem} of gnnscale, version {recipe.digest[:12]} of its recipe.",
            "#",
            f"#   sh {SCRIPT} apptainer|singularity         an image file, {stem}.sif",
            f"#   sh {SCRIPT} podman|podman-hpc [FILE]      {name} in its store, and FILE, if it is given: an archive if its",
            "#                                         name ends in .tar, a file for CSCS's container engine if in .sqsh",
            "set -eu",
            '[ $# -gt 0 ] || { sed -n "2,6s/^# \\{0,1\\}//p" "$0"; exit 64; }',
            "program=$1 file=${2:-}",
            'cd "$(dirname "$0")"',
            "here=$PWD",
            "",
            'echo "gnnscale: step 1/4 wheels"',
            f"[ -e wheels/complete ] || {{ mkdir -p wheels && DS_BUILD_OPS=0 {shlex.join(wheels)} && : >wheels/complete; }}",
            'echo "gnnscale: step 2/4 image"',
            "case $program in",
            "apptainer | singularity)",
            *indent(sif_lines(recipe, stem)),
            "    ;;",
            "podman | podman-hpc)",
            *indent(oci_lines(recipe, name)),
            "    ;;",
            '*) echo "$0: found $program; expected apptainer, singularity, podman or podman-hpc" >&2 && exit 64 ;;',
            "esac",
            "",
        ]
    )


def indent(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def sif_lines(recipe: Recipe, stem: str) -> list[str]:
    build = definition_words("$program", "$here/wheels", "$here/tmp", {})
    execute = ["$program", *apptainer.execute_words("$program")[1:]]
    return [
        "mkdir -p tmp",
        f'(cd context && {words(build)} "$here/{stem}.sif.part" "$here/{recipe.definition.name}")',
        'echo "gnnscale: step 3/4 test"',
        f"{words(execute)} {stem}.sif.part {words(check_words(recipe.accelerator))}",
        f"mv {stem}.sif.part {stem}.sif",
        f'echo "{stem}.sif: on the site: gnnscale image pull --site SITE --from {stem}.sif"',
    ]


def oci_lines(recipe: Recipe, name: str) -> list[str]:
    build = build_words("$program", recipe.accelerator, "$base", "$here/wheels", name, "context")
    return [
        f"base=$($program image pull --quiet {oci_base_source(recipe)})",
        words(build),
        'echo "gnnscale: step 3/4 test"',
        words([*run_words("$program", name), *check_words(recipe.accelerator)]),
        f'[ "$program" != podman-hpc ] || $program migrate {name}',
        *export_lines(name),
    ]


def export_lines(name: str) -> list[str]:
    """Return the lines that write an image of the store into a file, whole or not at all."""
    return [
        'echo "gnnscale: step 4/4 file"',
        "case $file in",
        '"") ;;',
        "*.sqsh)",
        '    rm -f "$file.part"',
        # It has ended with an error after a file was whole, so the file is asked: a cut one has no such entry.
        f'    enroot import -x mount -o "$file.part" podman://{name} || true',
        f'    unsquashfs -cat "$file.part" {IMAGE_HOME.lstrip("/")}/image.json >/dev/null',
        '    mv "$file.part" "$file"',
        "    ;;",
        "*)",
        '    rm -f "$file.part"',
        f'    $program save --format oci-archive --output "$file.part" {name}',
        '    mv "$file.part" "$file"',
        '    echo "$file: on the site: gnnscale image pull --site SITE --from oci-archive:$file"',
        "    ;;",
        "esac",
    ]


def words(command: Sequence[str]) -> str:
    """Join words for a shell that fills in variables of the script."""
    return " ".join(f'"{word}"' if "$" in word else shlex.quote(word) for word in command)
