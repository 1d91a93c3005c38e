"""The part of a site file about containers: runtime, image, and what a stage sees in it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gnnscale.schema import Record

RuntimeName = Literal["none", "apptainer", "singularity", "podman", "podman-hpc", "shifter", "ce"]
Flags = tuple[str, ...] | dict[RuntimeName, tuple[str, ...]]
PODMAN_RUNTIMES = ("podman-hpc", "podman")  # both build images by the same words; the first that is there does
# Modules of podman-hpc, each of which brings the namespaces of the host: Podman refuses to be told of a network twice. Most
# of them put all ranks of a node into one container, which podman-hpc names after the process that launches them.
MPI_MODULES = ("--mpi", "--cuda-mpi", "--openmpi-pmi2", "--openmpi-pmix")


def require_directory(text: str) -> str:
    """Raise unless the text is a path that may stand in double quotes in bash."""
    if not re.fullmatch(r"(?:[\w/.:-]|\$\w+|\$\{\w+(:-[\w/.-]*)?\})+", text):
        raise ValueError("expected a path, in which only $NAME and ${NAME:-path} are filled in")
    return text


def require_digest(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError("expected the 64 hexadecimal digits of an id, as `image inspect` shows it")
    return text


class Container(Record):
    """The container runtime of this site, and options for images."""

    runtime: RuntimeName = "none"
    use: bool = Field(
        False, description="true = every stage runs in the image; the same as --container on the command line"
    )
    image: str | None = Field(
        None,
        description="file of the image, or its name in podman-hpc, shifter and ce; null = the one that `image build` made",
    )
    digest: Annotated[str, AfterValidator(require_digest)] | None = Field(
        None, description="id of the image; null = as in the record of its build"
    )
    checkout: bool | None = Field(
        None, description="true = the code of this checkout is bound over the image's; null = only if they differ"
    )
    modules: tuple[str, ...] = Field((), description="modules that provide the runtime")
    flags: Flags = Field(
        (),
        description="options of the run or exec command, those for GPUs are added; where a site has several runtimes, "
        "RUNTIME: [options]",
    )
    rank_flags: Flags = Field(
        (), description="more options for stages whose ranks a launcher starts, such as modules for MPI"
    )
    binds: tuple[str, ...] = Field(
        (), description="SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro, added to run directory, code and scratch"
    )
    data: tuple[str, ...] = Field(
        (), description="paths that conversions may read; the raw data of the study are added"
    )
    env: dict[str, str] = Field(default_factory=dict, description="variables set in the container")
    pass_env: tuple[str, ...] = Field(
        (), description="variables passed in, added to PASSED_VARIABLES of workflow/images/environment.py"
    )
    scratch: Annotated[str, AfterValidator(require_directory)] = Field(
        "${TMPDIR:-/tmp}",
        description="scratch directory of a node; it becomes /tmp in the container, where caches are too",
    )
    broadcast: int | None = Field(
        None,
        ge=1,
        description="fewest nodes of a job that copies the image to `scratch`, which must be emptied after jobs; Slurm only",
    )

    def options(self, has_ranks: bool) -> tuple[str, ...]:
        """Return the options of a stage, with or without ranks that a launcher starts."""
        chosen = (self.flags, self.rank_flags) if has_ranks else (self.flags,)
        return tuple(
            option for flags in chosen for option in (flags.get(self.runtime, ()) if isinstance(flags, dict) else flags)
        )
