"""The rank of a process, from the variables that each launcher really sets; a job of one where none is set."""

import pytest

from gnnscale.machine.rank_env import Ranks, read_ranks

# The variables of rank 5 of 8, the second of its node, with others that happen to be set.
BATCH = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}
FOUND = {
    "srun": {**BATCH, "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_ID": "0"},
    # srun with the PMI2 plugin: there is a PMI_RANK too, but not which rank of its node
    "srun, pmi2": {
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_TASKS": "8",
        "PMI_RANK": "5",
        "PMI_SIZE": "8",
    },
    # mpiexec starts one daemon a node by srun, whose variables its ranks inherit: 4 tasks, this is the third node
    "hydra": {
        "PMI_RANK": "5",
        "PMI_SIZE": "8",
        "MPI_LOCALRANKID": "1",
        "MPI_LOCALNRANKS": "2",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_TASKS": "4",
    },
    "openmpi": {
        "OMPI_COMM_WORLD_RANK": "5",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "8",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_TASKS": "4",
        "PMIX_RANK": "5",
    },
    "mvapich": {"MV2_COMM_WORLD_RANK": "5", "MV2_COMM_WORLD_LOCAL_RANK": "1", "MV2_COMM_WORLD_SIZE": "8", **BATCH},
    "pals": {"PALS_RANKID": "5", "PALS_LOCAL_RANKID": "1", "PALS_NRANKS": "8", "PALS_APID": "x"},
    "pals, size by PMI": {
        "PALS_RANKID": "5",
        "PALS_LOCAL_RANKID": "1",
        "PALS_LOCAL_SIZE": "2",
        "PMI_RANK": "5",
        "PMI_LOCAL_RANK": "1",
        "PMI_SIZE": "8",
    },
    "cray": {"PMI_RANK": "5", "PMI_LOCAL_RANK": "1", "PMI_SIZE": "8"},
    "torch": {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"},
}


@pytest.mark.parametrize("case", FOUND)
def test_every_launcher_is_understood(case):
    assert read_ranks(FOUND[case]) == Ranks(5, 1, 8, case.split(",")[0])


@pytest.mark.parametrize("environ", [{}, BATCH, {"PMI_RANK": "3"}, {"RANK": "1"}])
def test_a_process_without_a_launcher_is_a_job_of_one(environ):
    assert read_ranks(environ) == Ranks(0, 0, 1, "none")
