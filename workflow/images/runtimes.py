"""Wraps a stage's command so that it runs in the image of its site, for each container runtime. Pure.

A stage sees the run directory, scratch of the node as /tmp, raw data if it is a conversion, and read-only the code of this
checkout if it differs from the image's. It gets the variables of environment.py and those that the site's `env` and
`container` name, and no others: no token or password of the user's shell is visible inside, or in a log of the environment.

The command is wrapped in lines of bash, as some facts are known only on the node: which variables are set, where scratch is.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract.places import ROOT
from workflow.config.container import MPI_MODULES, Container
from workflow.config.site import SiteConfig
from workflow.images.environment import (
    IMAGE_PYTHON,
    clear_environment,
    fixed_variables,
    image_variables,
    loop_over_passed,
)
from workflow.images.mounts import Mount, mount_option, stage_mounts, volume_option

# Stages of many ranks; those on one node share memory. All other stages are one process.
KINDS_WITH_RANKS = ("train", "memory_levers", "rank_report")
RUNTIMES_WITH_IMAGE_FILES = ("apptainer", "singularity")  # their images are files, which checks.py can check
# Intel's devices need no flag of Apptainer's: they are in /dev, which is visible in every container.
DEVICES = {"nvidia": ("--device=nvidia.com/gpu=all",), "amd": ("--device=/dev/kfd", "--device=/dev/dri")}
GPU_FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "apptainer": {"nvidia": ("--nv",), "amd": ("--rocm",)},
    "singularity": {"nvidia": ("--nv",), "amd": ("--rocm",)},
    "podman": DEVICES | {"intel": ("--device=/dev/dri",)},
    "podman-hpc": DEVICES | {"intel": ("--device=/dev/dri",), "nvidia": ("--gpu",)},
    "shifter": {"nvidia": ("--module=gpu",)},
}
NAMESPACE_OPTIONS = (("--network", "--net"), ("--ipc",), ("--pid",))
SIF_VARIABLE = "GNNSCALE_SIF"  # path of the node's own copy of the image
LIFELINE_VARIABLE = "GNNSCALE_LIFELINE"  # set by a driver that holds the other end of the stage's standard input
# A stage must end when its runtime is killed, and when its driver is. Linux can signal a process whose parent has died, but
# forgets the request when a process changes its credentials, as runtimes do. So the end of its input ends the stage.
_KILL_AT_END_OF_INPUT = (
    f'[ -z "${LIFELINE_VARIABLE}" ] || {{ exec 3<&0; (cat <&3 >/dev/null; kill -KILL $$) & exec 3<&-; }}; '
    'exec "$@" </dev/null'
)
TIED_TO_DRIVER = f"setpriv --pdeathsig KILL sh -c {shlex.quote(_KILL_AT_END_OF_INPUT)} stage"
# Podman's containers are no children of the command that starts them, and outlive it. They see the processes of the host,
# so the stage looks itself whether that command lives; one that has ended and waits for its parent counts as gone.
_LIVES = "lives() { read -r stat </proc/$1/stat && case $stat in *') Z '*) false;; esac; }"
_END_WITH_LAUNCHER = (
    f"launcher=$1; shift; {_LIVES}; "
    "(while lives $launcher && lives $$; do sleep 0.2; done; "
    "lives $launcher || { kill -TERM $$; sleep 1; kill -KILL $$; }) </dev/null >/dev/null 2>&1 & "
    'exec "$@" </dev/null'
)
TIED_TO_LAUNCHER = f"sh -c {shlex.quote(_END_WITH_LAUNCHER)} stage $$"


class Wrapper(NamedTuple):
    """Words around a command with which it runs in the image."""

    prefix: Sequence[str] = ()  # words before the command
    launcher_options: Sequence[str] = ()  # added to those of the command that launches ranks
    without_launcher: Sequence[str] = ()  # words before all, for a stage that nothing launches


def wrap_stage(site: SiteConfig, kind: str, folder: Path | None, code: Path = ROOT) -> Wrapper:
    """Wrap a stage of this kind in `folder`, which lies two levels below the run directory; None = mount no run directory."""
    container = site.container
    if not container.use:
        return Wrapper()
    if container.runtime == "ce":  # Slurm itself starts the container
        assert folder is not None, "the container engine reads a file in the stage's folder"
        option = f"--environment={edf_path(folder)}"
        prefix = bash_words([*clear_environment(site), f"cd {shlex.quote(str(folder))}", 'exec "$@"'])
        return Wrapper(prefix, [option], wrap_in_step(site, option))
    lines = RUNTIMES[container.runtime](site, kind, stage_mounts(container, kind, folder, code))
    if container.modules:  # for stages on the driver's host; jobs have loaded them already
        load = "; ".join(module_lines(site, container.modules))
        lines.insert(0, f"command -v {container.runtime} >/dev/null || {{ {load}; }}")
    return Wrapper(bash_words([*commit_lines(container, code), *lines]))


def wrap_in_step(site: SiteConfig, option: str) -> list[str]:
    """Return the words that start one process as a step of a Slurm job, beside other steps on its node.

    Without these options each step would wait until it has the node for itself, and all might be bound to one core. Slurm
    sets the visible GPUs of a step anew, so the job's choice is set again after it.
    """
    gpus = ""
    if site.node.gpus:
        name = site.node.gpus.visible_variable
        gpus = f'${{{name}:+"{name}=${name}"}}'
    srun = f"exec srun --nodes=1 --ntasks=1 --overlap --cpu-bind=none {shlex.quote(option)}"
    return bash_words([f'{srun} env {gpus} "$@"'])


def module_lines(site: SiteConfig, names: Sequence[str]) -> list[str]:
    """Return the lines that load environment modules."""
    use = [shlex.join(["module", "use", *site.module_paths])] if names and site.module_paths else []
    return [*use, shlex.join(["module", "load", *names])] if names else []


def commit_lines(container: Container, code: Path) -> list[str]:
    """Return the line that passes on the commit of code that is bound over the image's, as there is no git inside."""
    command = f"git -C {shlex.quote(str(code))} rev-parse HEAD 2>/dev/null"
    return [f"export GNNSCALE_COMMIT=$({command})"] if container.checkout else []


def stage_interpreter(site: SiteConfig, otherwise: str) -> str:
    return IMAGE_PYTHON if site.container.use else otherwise


def bash_words(lines: list[str]) -> list[str]:
    return ["bash", "-c", "\n".join(lines), "container"]


# --------------------------------------------------------------------------------------------------------- runtimes
def apptainer_lines(site: SiteConfig, kind: str, binds: list[Mount]) -> list[str]:
    container, name = site.container, site.container.runtime.upper()
    lines = [
        # The user's own variables for containers do not apply here, except libraries of the host's MPI from modules.
        f"for name in $(compgen -e); do case $name in {name}ENV_LD_LIBRARY_PATH|{name}ENV_LD_PRELOAD) ;; "
        f'APPTAINERENV_*|SINGULARITYENV_*) unset "$name";; esac; done',
        loop_over_passed(site, f'export "{name}ENV_$name=${{!name}}"'),
        *(f"export {name}ENV_{key}={shlex.quote(value)}" for key, value in fixed_variables(site).items()),
        f"export {name}_SILENT=1",
    ]
    if container.runtime == "apptainer":
        lines.append('[ "$(id -u)" != 0 ] || export APPTAINER_USERNS=1')  # root may lack capabilities
        if has_launched_ranks(site, kind) and site.ranks_per_node > 1:
            # Otherwise the ranks of a node cannot share memory for MPI. Processes with the same parent share namespaces: in
            # a job that is the launcher's daemon; without a scheduler it is the driver, whose stages must not share any.
            lines.append("export APPTAINER_SHARENS=1")
    lines += scratch_lines(container)
    isolation = ["--cleanenv", "--no-home", "--no-mount", "home,cwd,tmp,hostfs"]
    words = [container.runtime, "exec", *isolation, *gpu_flags(site), *stage_options(site, kind)]
    for mount in binds:
        words += ["--mount", mount_option(mount)]
    lines.append(f'image=${SIF_VARIABLE}; [ -n "$image" ] || image={quoted_image(container)}')
    return [
        *lines,
        f'exec {shlex.join(words)} --mount "type=bind,src=$scratch,dst=/tmp" --pwd "$PWD" "$image" {TIED_TO_DRIVER} "$@"',
    ]


def podman_lines(site: SiteConfig, kind: str, binds: list[Mount]) -> list[str]:
    """Return the lines for Podman and podman-hpc; an image that is absent is no reason to ask a registry."""
    container, options = site.container, stage_options(site, kind)
    words = [container.runtime, "run", "--rm", "--pull=never", *gpu_flags(site), *options, *podman_namespaces(options)]
    words += ["--read-only"]
    words += [f"--env={key}={value}" for key, value in (image_variables() | fixed_variables(site)).items()]
    words += [f"--mount={mount_option(mount)}" for mount in binds]
    return [
        "args=()",
        # podman reads the value itself, so no list of processes shows it
        loop_over_passed(site, 'args+=("--env=$name")'),
        *([shared_container_line()] if set(options) & set(MPI_MODULES) else ()),
        *scratch_lines(container),
        f'exec {shlex.join(words)} --mount="type=bind,src=$scratch,dst=/tmp" --workdir="$PWD" "${{args[@]}}" '
        f'{quoted_image(container)} {TIED_TO_LAUNCHER} "$@"',
    ]


def podman_namespaces(options: Sequence[str]) -> list[str]:
    """Return the options for namespaces of the host, except where a module or an option of the site's brings them."""
    if set(options) & set(MPI_MODULES):
        return []
    given = {option.partition("=")[0] for option in options}
    return [f"{names[0]}=host" for names in NAMESPACE_OPTIONS if not given & set(names)]


def shared_container_line() -> str:
    """Return the line for a container that all ranks of a node enter: it ends with the process that launches them."""
    before, after = f"{_LIVES}; while lives ", "; do sleep 1; done 2>/dev/null"
    return f"export PODMANHPC_SHARED_RUN_COMMAND={shlex.quote('sh,-c,' + before)}$PPID{shlex.quote(after)}"


def shifter_lines(site: SiteConfig, kind: str, binds: list[Mount]) -> list[str]:
    """Return the lines for Shifter, which itself shows the file systems of the site, and creates no directory in an image."""
    container, options = site.container, stage_options(site, kind)
    has_modules = any(option.startswith("--module") for option in options)  # given twice, one of the two would be lost
    words = ["shifter", f"--image={container.image}", "--clearenv", *(() if has_modules else gpu_flags(site)), *options]
    words += [f"--env={key}={value}" for key, value in (image_variables() | fixed_variables(site)).items()]
    words += [f"--volume={volume_option(mount)}" for mount in binds if mount.source != mount.target]
    return [
        "args=()",
        loop_over_passed(site, 'args+=("--env=$name=${!name}")'),
        *scratch_lines(container),
        f'exec {shlex.join(words)} --volume="$scratch:/tmp" --workdir="$PWD" "${{args[@]}}" {TIED_TO_DRIVER} "$@"',
    ]


def has_launched_ranks(site: SiteConfig, kind: str) -> bool:
    """Return whether a launcher of the site starts the ranks of such a stage, each in a container."""
    return kind in KINDS_WITH_RANKS and site.has_scheduler and site.launch.command != "none"


def stage_options(site: SiteConfig, kind: str) -> tuple[str, ...]:
    return site.container.options(has_launched_ranks(site, kind))


def gpu_flags(site: SiteConfig) -> tuple[str, ...]:
    return GPU_FLAGS[site.container.runtime].get(site.node.gpus.vendor, ()) if site.node.gpus else ()


RUNTIMES = {
    "apptainer": apptainer_lines,
    "singularity": apptainer_lines,
    "podman": podman_lines,
    "podman-hpc": podman_lines,
    "shifter": shifter_lines,
}


def edf_path(folder: Path) -> Path:
    return folder / "image.toml"


def edf_text(site: SiteConfig, kind: str, folder: Path, code: Path = ROOT) -> str:
    """Return the environment definition file of CSCS's container engine."""
    container = site.container
    binds = [volume_option(mount) for mount in stage_mounts(container, kind, folder, code)]
    annotations = {key: value for key, value in container.env.items() if key.startswith("com.")}
    env = image_variables() | {key: value for key, value in fixed_variables(site).items() if key not in annotations}
    lines = [
        f"image = {json.dumps(container.image)}",
        f"mounts = {json.dumps([*binds, f'{container.scratch}:/tmp'])}",
        "writable = false",
        "",
        "[env]",
    ]
    lines += [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in env.items()]
    if annotations:
        lines += ["", "[annotations]", *(f"{key} = {json.dumps(value)}" for key, value in annotations.items())]
    return "\n".join(lines) + "\n"


def job_lines(site: SiteConfig, nodes: int, stages: list[tuple[str, Path]], code: Path = ROOT) -> list[str]:
    """Return the lines of a job before any of its stages, which are given by kind and folder."""
    container = site.container
    if container.use and container.runtime == "ce":
        lines = commit_lines(container, code)
        for kind, folder in stages:
            lines.append(f"cat > {shlex.quote(str(edf_path(folder)))} <<'EDF'")
            lines.append(edf_text(site, kind, folder, code) + "EDF")
        return lines
    is_file = container.runtime in RUNTIMES_WITH_IMAGE_FILES
    if container.use and is_file and container.broadcast is not None and nodes >= container.broadcast:
        return broadcast_lines(container)
    return []


def broadcast_lines(container: Container) -> list[str]:
    """Return the lines that copy the image to scratch of each node."""
    return [
        f"scratch={double_quoted(container.scratch)}",
        # If a copy fails, all nodes read the one file, as they do in jobs of fewer nodes.
        f'if sbcast --force {quoted_image(container)} "$scratch/gnnscale-$SLURM_JOB_ID.sif"; then',
        f'    export {SIF_VARIABLE}="$scratch/gnnscale-$SLURM_JOB_ID.sif"',
        "fi",
    ]


def scratch_lines(container: Container) -> list[str]:
    """Return the lines that find scratch of the node, and make it: a scheduler may name a directory that nobody has made."""
    return [f"scratch={double_quoted(container.scratch)}", 'mkdir -p "$scratch"']


def quoted_image(container: Container) -> str:
    assert container.image is not None, "plans are made for a site with its image (image_file.with_image)"
    return shlex.quote(container.image)


def double_quoted(text: str) -> str:
    """Put a path in double quotes, in which bash fills in its variables; site.require_directory allows nothing else."""
    return f'"{text}"'
