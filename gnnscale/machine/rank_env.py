"""The rank of this process in its parallel job, from the variables that its launcher sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

# (launcher, variables of the rank, of the local rank, of the number of ranks). The first complete set counts, so a launcher
# comes after those that use it: mpiexec starts its daemons with srun, and torch's variables are set by us.
LAUNCHERS = (
    ("torch", "RANK", "LOCAL_RANK", "WORLD_SIZE"),
    ("pals", "PALS_RANKID", "PALS_LOCAL_RANKID", "PALS_NRANKS"),
    ("pals", "PALS_RANKID", "PALS_LOCAL_RANKID", "PMI_SIZE"),  # of versions that leave the number to PMI
    ("openmpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("mvapich", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_SIZE"),
    ("hydra", "PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),  # of MPICH and Intel MPI
    ("cray", "PMI_RANK", "PMI_LOCAL_RANK", "PMI_SIZE"),
    ("srun", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),  # unset in a batch script, outside of srun
)


class Ranks(NamedTuple):
    """The rank of this process, and the number of all ranks."""

    rank: int
    local_rank: int
    size: int
    launcher: str


def read_ranks(environ: Mapping[str, str] = os.environ) -> Ranks:
    for launcher, *names in LAUNCHERS:
        if all(name in environ for name in names):
            rank, local_rank, size = (int(environ[name]) for name in names)
            return Ranks(rank, local_rank, size, launcher)
    return Ranks(0, 0, 1, "none")
