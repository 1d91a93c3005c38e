"""The process group of a job's ranks, and what ranks exchange outside of an engine."""

from __future__ import annotations

import logging
import os
import warnings
from datetime import timedelta

import torch
from torch import Tensor

from gnnscale.contract import errors
from gnnscale.machine import accelerator
from gnnscale.machine.rank_env import Ranks, read_ranks

PATIENCE = timedelta(minutes=30)  # of a rank that waits for the others; DeepSpeed has the same


def join_ranks(threads: int) -> Ranks:
    """Join the ranks of this job into one process group, once; a job of one rank is a group too."""
    ranks = read_ranks()
    # DeepSpeed takes the local rank for the number of a device, which it is not where each rank is shown a GPU of its own.
    device = str(accelerator.device_index(ranks.local_rank))
    os.environ |= {"RANK": str(ranks.rank), "LOCAL_RANK": device, "WORLD_SIZE": str(ranks.size)}
    if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:  # or DeepSpeed finds the two in conflict
        os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = device
    if torch.distributed.is_initialized():
        return ranks
    if ranks.size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise errors.UserError(
            f"{ranks.size} ranks do not know where to meet",
            "set MASTER_ADDR (the host of rank 0) and MASTER_PORT, or on one machine use python -m gnnscale.job.local_launcher",
        )
    torch.set_num_threads(threads)
    accelerator.take_device(ranks.local_rank)
    warnings.filterwarnings("ignore", category=FutureWarning)
    backend = accelerator.choose_backend()
    if ranks.size == 1:
        # A store in memory needs no port, so any number of runs fit on one machine.
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    elif accelerator.detect_kind() == "cpu":
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
    else:
        start_deepspeed()  # which tells the group of each rank's GPU
    return ranks


def start_deepspeed() -> None:
    """Bring DeepSpeed into the group of ranks. A training that does without it must not wait for its import."""
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # The shared-memory collectives would be compiled by g++ at the first start, for minutes, into the home directory;
    # they were measured no faster here than gloo.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=accelerator.choose_backend(), auto_mpi_discovery=False, verbose=False)


def gather(value: object) -> list:
    """Return the value of every rank."""
    of_all: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(of_all, value)
    return of_all


def reduce_sum(values: Tensor) -> Tensor:
    """Return the sum over all ranks."""
    if torch.distributed.get_world_size() > 1:
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values
