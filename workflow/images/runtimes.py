"""A runtime, a site and a stage to the words before a command that make it run inside of the site's image. Pure.

What a stage gets to see: the run directory, scratch of the node as /tmp, for conversions the raw data, and read-only the
code of this checkout where it is another than the image's. Of the environment: what PASSED, `env` and `container` of the
site name, and nothing else; so no token or password of the user's shell is ever inside, nor in a log of what is.

The words are a line of bash, since some of it is known only on the node: which variables are set, where scratch is.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract.errors import Problem
from gnnscale.contract.places import ROOT
from workflow.config.site import Container, SiteConfig

HOME, PYTHON = "/opt/gnnscale", "/opt/venv/bin/python"  # in every image; image.json in HOME says what it is
CODE = ("gnnscale", "datasets")  # folders of a checkout that stages run
READERS = ("convert", "convert_part")  # stages that read raw data
PARALLEL = (
    "train",
    "memory_levers",
    "rank_report",
)  # stages of many ranks, those of one node sharing memory; all others are one process
FILES = ("apptainer", "singularity")  # runtimes whose images are files that we know how to check
GPUS = {"nvidia": ("--nv",), "amd": ("--rocm",), "intel": ()}  # Intel's devices are in /dev, and need no more
# Which rank this is and where the others are; networks, GPUs, threads; what our own tests and users set on purpose.
PASSED = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_*",
    "PBS_*",
    "PALS_*",
    "PMI_*",
    "PMIX_*",
    "OMPI_*",
    "PRTE_*",
    "MV2_*",
    "HYDRA_*",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "I_MPI_*",
    "MPICH_*",
    "MPIR_*",
    "MPI4PY_*",
    "UCX_*",
    "FI_*",
    "NCCL_*",
    "RCCL_*",
    "CCL_*",
    "GLOO_*",
    "OMP_*",
    "KMP_*",
    "MALLOC_*",
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "HSA_*",
    "ZE_*",
    "SYCL_*",
    "ONEAPI_DEVICE_SELECTOR",
    "MIOPEN_*",
    "TORCH_*",
    "PYTORCH_*",
    "GNNSCALE_*",
    "PYTHONUNBUFFERED",
    "TZ",
)
SECRET = ("SLURM_JWT", "PBS_AUTH_*")  # though a pattern above has them
SIF = "GNNSCALE_SIF"  # variable that tells where a node has its own copy of the image


LIFELINE = "GNNSCALE_LIFELINE"  # set by a driver that holds the other end of the stage's standard input
# What runs inside ends with the runtime, if that is killed. And with its driver: Linux would tell a process that its parent
# has died, but forgets to when it changes its credentials, as runtimes do. So it is told by the end of its input.
TIED = (
    "setpriv --pdeathsig KILL sh -c "
    + shlex.quote(
        f'[ -z "${LIFELINE}" ] || {{ exec 3<&0; (cat <&3 >/dev/null; kill -KILL $$) & exec 3<&-; }}; exec "$@" </dev/null'
    )
    + " stage"
)


class Mount(NamedTuple):
    source: str
    target: str
    read_only: bool


class Inside(NamedTuple):
    """How a command comes to run in the image."""

    prefix: Sequence[str] = ()  # words before the command
    launcher: Sequence[str] = ()  # more options of what launches the ranks
    alone: Sequence[str] = ()  # words before all, where nothing launches it


def inside(site: SiteConfig, kind: str, folder: Path | None, code: Path = ROOT) -> Inside:
    """For a stage of this kind in this directory, which is two below the run's; None: nothing but the image."""
    container = site.container
    if not container.use:
        return Inside()
    if container.runtime == "ce":  # Slurm itself starts it
        option = f"--environment={edf_path(folder)}"
        prefix = bash([*clean(site), f"cd {shlex.quote(str(folder))}", 'exec "$@"'])
        return Inside(prefix, [option], step(site, option))
    lines = RUNTIMES[container.runtime](site, kind, mounts(container, kind, folder, code))
    if container.modules:  # where the driver runs, and a stage with it; jobs have loaded them
        loaded = "; ".join(modules(site, container.modules))
        lines.insert(0, f"command -v {container.runtime} >/dev/null || {{ {loaded}; }}")
    return Inside(bash([*commit(container, code), *lines]))


def step(site: SiteConfig, option: str) -> list[str]:
    """Of one process, beside others on its node: else each would wait until it has the node for itself, and all might be
    bound to one core. Slurm sets anew which GPUs a step sees, so what the job gave to this one is told behind it."""
    shown = f'${{{gpus.visible}:+"{gpus.visible}=${gpus.visible}"}}' if (gpus := site.node.gpus) else ""
    return bash([f'exec srun --nodes=1 --ntasks=1 --overlap --cpu-bind=none {shlex.quote(option)} env {shown} "$@"'])


def modules(site: SiteConfig, names: Sequence[str]) -> list[str]:
    """Lines that load them."""
    use = [shlex.join(["module", "use", *site.module_paths])] if names and site.module_paths else []
    return [*use, shlex.join(["module", "load", *names])] if names else []


def commit(container: Container, code: Path) -> list[str]:
    """Of the code that is bound over the image's, for provenance: inside there is no git."""
    asked = f"git -C {shlex.quote(str(code))} rev-parse HEAD 2>/dev/null"
    return [f"export GNNSCALE_COMMIT=$({asked})"] if container.checkout else []


def python(site: SiteConfig, otherwise: str) -> str:
    return PYTHON if site.container.use else otherwise


def bash(lines: list[str]) -> list[str]:
    return ["bash", "-c", "\n".join(lines), "container"]


def mounts(container: Container, kind: str, folder: Path | None, code: Path) -> list[Mount]:
    found = []
    if folder is not None:
        found.append(Mount(str(folder.parent.parent), str(folder.parent.parent), False))
    if container.checkout:
        found += [Mount(str(code / name), f"{HOME}/{name}", True) for name in CODE]
    if kind in READERS:
        found += [Mount(path, path, True) for path in container.data]
    for bind in container.binds:
        source, target, mode = [*bind.split(":"), "", ""][:3]
        found.append(Mount(source, target or source, mode == "ro"))
    return found


# ------------------------------------------------------------------------------------------------------ environment
def passed(site: SiteConfig) -> str:
    """A pattern of bash's `case`."""
    return "|".join(dict.fromkeys((*PASSED, *site.env, *site.container.pass_env)))


def each_variable(site: SiteConfig, act: str) -> str:
    """What is done with each that is set and may be passed."""
    return f"for name in $(compgen -e); do case $name in {'|'.join(SECRET)}) ;; {passed(site)}) {act};; esac; done"


def fixed(site: SiteConfig) -> dict[str, str]:
    return {"TMPDIR": "/tmp", "XDG_CACHE_HOME": "/tmp/.gnnscale", "PYTHONUNBUFFERED": "1"} | site.container.env


def clean(site: SiteConfig) -> list[str]:
    """For a runtime that passes the whole environment: what the image sets stays, of the rest what may be passed."""
    own = "PATH|HOME|PWD|SHLVL|LD_LIBRARY_PATH|PYTHONPATH|NVIDIA_*|CUDA_*"
    lines = [
        f'for name in $(compgen -e); do case $name in {"|".join(SECRET)}) unset "$name";; {own}|{passed(site)}) ;; '
        '*) unset "$name";; esac; done'
    ]
    return lines + [f"export {name}={shlex.quote(value)}" for name, value in inside_fixed().items()]


def inside_fixed() -> dict[str, str]:
    """What an image's own environment says; set again for runtimes that do not know it."""
    return {"PYTHONPATH": HOME, "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


# --------------------------------------------------------------------------------------------------------- runtimes
def apptainer(site: SiteConfig, kind: str, binds: list[Mount]) -> list[str]:
    container, name = site.container, site.container.runtime.upper()
    lines = [
        # What the user's shell has for containers is not for these; modules of a site bring libraries of the host's MPI.
        f"for name in $(compgen -e); do case $name in {name}ENV_LD_LIBRARY_PATH|{name}ENV_LD_PRELOAD) ;; "
        f'APPTAINERENV_*|SINGULARITYENV_*) unset "$name";; esac; done',
        each_variable(site, f'export "{name}ENV_$name=${{!name}}"'),
        *(f"export {name}ENV_{key}={shlex.quote(value)}" for key, value in fixed(site).items()),
        f"export {name}_SILENT=1",
    ]
    if container.runtime == "apptainer":
        lines.append(
            '[ "$(id -u)" != 0 ] || export APPTAINER_USERNS=1'
        )  # root may lack capabilities; namespaces suffice
        if kind in PARALLEL and site.batch and site.ranks_per_node > 1:
            # Else MPI's ranks of one node cannot share memory. Shared by what has the same parent: the launcher's daemon
            # there; of stages that run side by side on a laptop that is their driver, and they are not to share anything.
            lines.append("export APPTAINER_SHARENS=1")
    lines += [f"scratch={double(container.scratch)}", 'mkdir -p "$scratch"']
    gpus = GPUS[site.node.gpus.vendor] if site.node.gpus else ()
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
    lines.append(f'image=${SIF}; [ -n "$image" ] || image={shlex.quote(container.image)}')
    return [
        *lines,
        f'exec {shlex.join(words)} --mount "type=bind,src=$scratch,dst=/tmp" --pwd "$PWD" "$image" {TIED} "$@"',
    ]


def podman(site: SiteConfig, kind: str, binds: list[Mount]) -> list[str]:
    container = site.container
    words = ["podman-hpc", "run", *container.flags, "--read-only", "--network=host", "--ipc=host"]
    words += [f"--env={key}={value}" for key, value in (inside_fixed() | fixed(site)).items()]
    words += [f"--mount={mount_option(mount)}" for mount in binds]
    return [
        "args=()",
        each_variable(
            site, 'args+=("--env=$name")'
        ),  # podman takes the value from the environment, so no list shows it
        f"scratch={double(container.scratch)}",
        f'exec {shlex.join(words)} --mount="type=bind,src=$scratch,dst=/tmp" --workdir="$PWD" "${{args[@]}}" '
        f'{shlex.quote(container.image)} "$@"',
    ]


def shifter(site: SiteConfig, kind: str, binds: list[Mount]) -> list[str]:
    container = site.container
    words = ["shifter", f"--image={container.image}", "--clearenv", *container.flags]
    words += [f"--env={key}={value}" for key, value in (inside_fixed() | fixed(site)).items()]
    words += [f"--volume={volume(mount)}" for mount in binds]
    return [
        "args=()",
        each_variable(site, 'args+=("--env=$name=${!name}")'),
        f"scratch={double(container.scratch)}",
        f'exec {shlex.join(words)} --volume="$scratch:/tmp" --workdir="$PWD" "${{args[@]}}" "$@"',
    ]


RUNTIMES = {"apptainer": apptainer, "singularity": apptainer, "podman-hpc": podman, "shifter": shifter}


def edf_path(folder: Path) -> Path:
    return folder / "image.toml"


def edf(site: SiteConfig, kind: str, folder: Path, code: Path = ROOT) -> str:
    """The environment definition file of CSCS's container engine."""
    container = site.container
    listed = [volume(mount) for mount in mounts(container, kind, folder, code)] + [f"{container.scratch}:/tmp"]
    annotations = {key: value for key, value in container.env.items() if key.startswith("com.")}
    env = inside_fixed() | {key: value for key, value in fixed(site).items() if key not in annotations}
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
        return commit(container, code) + [
            line
            for kind, folder in stages
            for line in (f"cat > {shlex.quote(str(edf_path(folder)))} <<'EDF'", edf(site, kind, folder, code) + "EDF")
        ]
    if (
        not container.use
        or container.broadcast is None
        or nodes < container.broadcast
        or container.runtime not in FILES
    ):
        return []
    return [
        f"scratch={double(container.scratch)}",
        # A copy that is cut off has another exit code than 0; then all read the one file, as on fewer nodes.
        f'if sbcast --force {shlex.quote(container.image)} "$scratch/gnnscale-$SLURM_JOB_ID.sif"; then',
        f'    export {SIF}="$scratch/gnnscale-$SLURM_JOB_ID.sif"',
        "fi",
    ]


# ---------------------------------------------------------------------------------------------------------- quoting
def mount_option(mount: Mount) -> str:
    """Of --mount: fields of CSV, so that a path may hold commas, colons and quotes."""
    line = io.StringIO()
    fields = ["type=bind", f"src={mount.source}", f"dst={mount.target}", *(["ro"] if mount.read_only else [])]
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


def volume(mount: Mount) -> str:
    """SOURCE:TARGET[:ro], which cannot hold every path."""
    if ":" in mount.source + mount.target or "," in mount.source + mount.target:
        raise Problem(
            f"{mount.source}: this container runtime binds no path with a colon or a comma", "choose another --root"
        )
    return f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else "")


def double(text: str) -> str:
    """In double quotes, for siteconfig.is_directory has seen to it that it holds nothing but variables to fill in."""
    return f'"{text}"'
