"""A runtime, a site and a stage to the words before a command that make it run inside of the site's image. Pure.

What a stage gets to see: the run directory, scratch of the node as /tmp, for conversions the raw data, and read-only the
code of this checkout where it is another than the image's. Of the environment: what PASSED, `env` and `container` of the
site name, and nothing else; so no token or password of the user's shell is ever inside, nor in a log of what is.

The words are a line of bash, since some of it is known only on the node: which variables are set, where scratch is.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract.places import ROOT
from workflow.config.site import Container, SiteConfig
from workflow.images.environment import clear_environment, fixed_variables, image_variables, loop_over_passed
from workflow.images.mounts import Mount, mount_option, stage_mounts, volume_option

IMAGE_PYTHON = "/opt/venv/bin/python"  # in every image
KINDS_WITH_RANKS = (
    "train",
    "memory_levers",
    "rank_report",
)  # stages of many ranks, those of one node sharing memory; all others are one process
RUNTIMES_WITH_IMAGE_FILES = ("apptainer", "singularity")  # runtimes whose images are files that we know how to check
GPU_FLAGS = {"nvidia": ("--nv",), "amd": ("--rocm",), "intel": ()}  # Intel's devices are in /dev, and need no more
SIF_VARIABLE = "GNNSCALE_SIF"  # variable that tells where a node has its own copy of the image


LIFELINE_VARIABLE = "GNNSCALE_LIFELINE"  # set by a driver that holds the other end of the stage's standard input
# What runs inside ends with the runtime, if that is killed. And with its driver: Linux would tell a process that its parent
# has died, but forgets to when it changes its credentials, as runtimes do. So it is told by the end of its input.
TIED_TO_DRIVER = (
    "setpriv --pdeathsig KILL sh -c "
    + shlex.quote(
        f'[ -z "${LIFELINE_VARIABLE}" ] || {{ exec 3<&0; (cat <&3 >/dev/null; kill -KILL $$) & exec 3<&-; }}; exec "$@" </dev/null'
    )
    + " stage"
)


class Wrapper(NamedTuple):
    """How a command comes to run in the image."""

    prefix: Sequence[str] = ()  # words before the command
    launcher: Sequence[str] = ()  # more options of what launches the ranks
    alone: Sequence[str] = ()  # words before all, where nothing launches it


def wrap_stage(site: SiteConfig, kind: str, folder: Path | None, code: Path = ROOT) -> Wrapper:
    """For a stage of this kind in this directory, which is two below the run's; None: nothing but the image."""
    container = site.container
    if not container.use:
        return Wrapper()
    if container.runtime == "ce":  # Slurm itself starts it
        option = f"--environment={edf_path(folder)}"
        prefix = bash_words([*clear_environment(site), f"cd {shlex.quote(str(folder))}", 'exec "$@"'])
        return Wrapper(prefix, [option], wrap_in_step(site, option))
    lines = RUNTIMES[container.runtime](site, kind, stage_mounts(container, kind, folder, code))
    if container.modules:  # where the driver runs, and a stage with it; jobs have loaded them
        loaded = "; ".join(module_lines(site, container.modules))
        lines.insert(0, f"command -v {container.runtime} >/dev/null || {{ {loaded}; }}")
    return Wrapper(bash_words([*commit_lines(container, code), *lines]))


def wrap_in_step(site: SiteConfig, option: str) -> list[str]:
    """Of one process, beside others on its node: else each would wait until it has the node for itself, and all might be
    bound to one core. Slurm sets anew which GPUs a step sees, so what the job gave to this one is told behind it."""
    shown = f'${{{gpus.visible_variable}:+"{gpus.visible_variable}=${gpus.visible_variable}"}}' if (gpus := site.node.gpus) else ""
    return bash_words(
        [f'exec srun --nodes=1 --ntasks=1 --overlap --cpu-bind=none {shlex.quote(option)} env {shown} "$@"']
    )


def module_lines(site: SiteConfig, names: Sequence[str]) -> list[str]:
    """Lines that load them."""
    use = [shlex.join(["module", "use", *site.module_paths])] if names and site.module_paths else []
    return [*use, shlex.join(["module", "load", *names])] if names else []


def commit_lines(container: Container, code: Path) -> list[str]:
    """Of the code that is bound over the image's, for provenance: inside there is no git."""
    asked = f"git -C {shlex.quote(str(code))} rev-parse HEAD 2>/dev/null"
    return [f"export GNNSCALE_COMMIT=$({asked})"] if container.checkout else []


def stage_interpreter(site: SiteConfig, otherwise: str) -> str:
    return IMAGE_PYTHON if site.container.use else otherwise


def bash_words(lines: list[str]) -> list[str]:
    return ["bash", "-c", "\n".join(lines), "container"]


# ------------------------------------------------------------------------------------------------------ environment


# --------------------------------------------------------------------------------------------------------- runtimes
def apptainer_lines(site: SiteConfig, kind: str, binds: list[Mount]) -> list[str]:
    container, name = site.container, site.container.runtime.upper()
    lines = [
        # What the user's shell has for containers is not for these; modules of a site bring libraries of the host's MPI.
        f"for name in $(compgen -e); do case $name in {name}ENV_LD_LIBRARY_PATH|{name}ENV_LD_PRELOAD) ;; "
        f'APPTAINERENV_*|SINGULARITYENV_*) unset "$name";; esac; done',
        loop_over_passed(site, f'export "{name}ENV_$name=${{!name}}"'),
        *(f"export {name}ENV_{key}={shlex.quote(value)}" for key, value in fixed_variables(site).items()),
        f"export {name}_SILENT=1",
    ]
    if container.runtime == "apptainer":
        lines.append(
            '[ "$(id -u)" != 0 ] || export APPTAINER_USERNS=1'
        )  # root may lack capabilities; namespaces suffice
        if kind in KINDS_WITH_RANKS and site.has_scheduler and site.ranks_per_node > 1:
            # Else MPI's ranks of one node cannot share memory. Shared by what has the same parent: the launcher's daemon
            # there; of stages that run side by side on a laptop that is their driver, and they are not to share anything.
            lines.append("export APPTAINER_SHARENS=1")
    lines += [f"scratch={double_quoted(container.scratch)}", 'mkdir -p "$scratch"']
    gpus = GPU_FLAGS[site.node.gpus.vendor] if site.node.gpus else ()
    words = [
        container.runtime,
        "exec",
        "--cleanenv",
        "--no-home",
        "--no-mount",
        "home,cwd,tmp,hostfs",
        *gpus,
        *container.flags,
    ]
    for mount in binds:
        words += ["--mount", mount_option(mount)]
    lines.append(f'image=${SIF_VARIABLE}; [ -n "$image" ] || image={shlex.quote(container.image)}')
    return [
        *lines,
        f'exec {shlex.join(words)} --mount "type=bind,src=$scratch,dst=/tmp" --pwd "$PWD" "$image" {TIED_TO_DRIVER} "$@"',
    ]


def podman_lines(site: SiteConfig, kind: str, binds: list[Mount]) -> list[str]:
    container = site.container
    words = ["podman-hpc", "run", *container.flags, "--read-only", "--network=host", "--ipc=host"]
    words += [f"--env={key}={value}" for key, value in (image_variables() | fixed_variables(site)).items()]
    words += [f"--mount={mount_option(mount)}" for mount in binds]
    return [
        "args=()",
        loop_over_passed(
            site, 'args+=("--env=$name")'
        ),  # podman takes the value from the environment, so no list shows it
        f"scratch={double_quoted(container.scratch)}",
        f'exec {shlex.join(words)} --mount="type=bind,src=$scratch,dst=/tmp" --workdir="$PWD" "${{args[@]}}" '
        f'{shlex.quote(container.image)} "$@"',
    ]


def shifter_lines(site: SiteConfig, kind: str, binds: list[Mount]) -> list[str]:
    container = site.container
    words = ["shifter", f"--image={container.image}", "--clearenv", *container.flags]
    words += [f"--env={key}={value}" for key, value in (image_variables() | fixed_variables(site)).items()]
    words += [f"--volume={volume_option(mount)}" for mount in binds]
    return [
        "args=()",
        loop_over_passed(site, 'args+=("--env=$name=${!name}")'),
        f"scratch={double_quoted(container.scratch)}",
        f'exec {shlex.join(words)} --volume="$scratch:/tmp" --workdir="$PWD" "${{args[@]}}" "$@"',
    ]


RUNTIMES = {
    "apptainer": apptainer_lines,
    "singularity": apptainer_lines,
    "podman-hpc": podman_lines,
    "shifter": shifter_lines,
}


def edf_path(folder: Path) -> Path:
    return folder / "image.toml"


def edf_text(site: SiteConfig, kind: str, folder: Path, code: Path = ROOT) -> str:
    """The environment definition file of CSCS's container engine."""
    container = site.container
    listed = [volume_option(mount) for mount in stage_mounts(container, kind, folder, code)] + [
        f"{container.scratch}:/tmp"
    ]
    annotations = {key: value for key, value in container.env.items() if key.startswith("com.")}
    env = image_variables() | {key: value for key, value in fixed_variables(site).items() if key not in annotations}
    lines = [
        f"image = {json.dumps(container.image)}",
        f"mounts = {json.dumps(listed)}",
        "writable = false",
        "",
        "[env]",
    ]
    lines += [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in env.items()]
    if annotations:
        lines += ["", "[annotations]", *(f"{key} = {json.dumps(value)}" for key, value in annotations.items())]
    return "\n".join(lines) + "\n"


def job_lines(site: SiteConfig, nodes: int, stages: list[tuple[str, Path]], code: Path = ROOT) -> list[str]:
    """What a job does before any of its stages, given by kind and directory."""
    container = site.container
    if container.use and container.runtime == "ce":
        return commit_lines(container, code) + [
            line
            for kind, folder in stages
            for line in (
                f"cat > {shlex.quote(str(edf_path(folder)))} <<'EDF'",
                edf_text(site, kind, folder, code) + "EDF",
            )
        ]
    if (
        not container.use
        or container.broadcast is None
        or nodes < container.broadcast
        or container.runtime not in RUNTIMES_WITH_IMAGE_FILES
    ):
        return []
    return [
        f"scratch={double_quoted(container.scratch)}",
        # A copy that is cut off has another exit code than 0; then all read the one file, as on fewer nodes.
        f'if sbcast --force {shlex.quote(container.image)} "$scratch/gnnscale-$SLURM_JOB_ID.sif"; then',
        f'    export {SIF_VARIABLE}="$scratch/gnnscale-$SLURM_JOB_ID.sif"',
        "fi",
    ]


# ---------------------------------------------------------------------------------------------------------- quoting


def double_quoted(text: str) -> str:
    """In double quotes, for siteconfig.is_directory has seen to it that it holds nothing but variables to fill in."""
    return f'"{text}"'
