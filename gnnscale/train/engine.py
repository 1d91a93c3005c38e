"""DeepSpeed's engine, and the process group around it. The only file that imports deepspeed.

DeepSpeed is imported inside the functions: it wants the rank variables and its own settings in the environment first,
and a stage that refuses its input should not wait a second for it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from gnnscale import files
from gnnscale.ranks import Ranks, ranks
from gnnscale.specs import OptimSettings, Runtime

TAG = "state"  # the name that DeepSpeed gives to the folder of one checkpoint


def join(threads: int) -> Ranks:
    """Join the ranks of this job into one process group; a job of one rank is a group too."""
    here = ranks()
    os.environ |= {"RANK": str(here.rank), "LOCAL_RANK": str(here.local_rank), "WORLD_SIZE": str(here.size)}
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # The shared-memory collectives would be compiled by g++ at the first start, for minutes, into the home directory;
    # they were measured no faster here than gloo.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if here.size == 1:
        # A store in memory needs no port, so any number of runs fit on one machine.
        torch.distributed.init_process_group(backend(), store=torch.distributed.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend(), auto_mpi_discovery=False, verbose=False)
    return here


def backend() -> str:
    return "nccl" if torch.cuda.is_available() else "gloo"


def leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Engine:
    """A model with its optimiser under DeepSpeed: ZeRO, clipping, gradient reduction, checkpoints."""

    def __init__(self, model: nn.Module, groups: list[dict], optim: OptimSettings, runtime: Runtime):
        import deepspeed

        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": optim.clip,
            "zero_optimization": {"stage": runtime.zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1_000_000_000,
        }
        # AdamW of torch and not DeepSpeed's, whose C++ would be compiled at the first start.
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=optim.weight_decay, fused=True)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        self.device = self.engine.device
        self.precision = torch.bfloat16 if optim.precision == "bf16" else torch.float32

    def __call__(self, *inputs: object) -> object:
        enabled = self.precision is not torch.float32
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            return self.engine(*inputs)

    def step(self, loss: Tensor, rate: float) -> float:
        """Backward, reduce, clip, update; the gradient's norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.engine.backward(loss)
        own = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(own) if own else None  # ZeRO keeps the gradients to itself
        self.engine.step()
        return float(norm if norm is not None else self.engine.get_global_grad_norm())

    def save(self, directory: Path, state: dict) -> None:
        """A checkpoint is a directory with a manifest, renamed into place when everything in it is on the disk."""
        first = torch.distributed.get_rank() == 0
        beside = directory.with_name(f".{directory.name}.tmp")
        if first:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        torch.distributed.barrier()
        self.engine.save_checkpoint(str(beside), tag=TAG, client_state={"gnnscale": state}, save_latest=False)
        torch.distributed.barrier()
        if first:
            files.sync_tree(beside)
            written = {name: file.model_dump() for name, file in files.describe(beside, [TAG]).items()}
            files.write(beside / "manifest.json", json.dumps(written))
            shutil.rmtree(directory, ignore_errors=True)
            os.replace(beside, directory)
            files.sync_directory(directory.parent)
        torch.distributed.barrier()

    def restore(self, directory: Path) -> dict:
        path, client = self.engine.load_checkpoint(str(directory), tag=TAG)
        if path is None:
            raise files.BadFile(f"{directory}: DeepSpeed could not load it")
        return client["gnnscale"]


def checkpoint_is_whole(directory: Path) -> bool:
    """Whether every file of a checkpoint is as its manifest says."""
    try:
        written = json.loads((directory / "manifest.json").read_text())
        return all(files.sha256(directory / name) == file["sha256"] for name, file in written.items())
    except (OSError, ValueError, KeyError):
        return False


def reduce_sum(values: Tensor) -> Tensor:
    """The sum over all ranks."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values
