"""The model under DeepSpeed: ZeRO, clipping, gradient reduction, and its state as whole tensors by name.

DeepSpeed is imported inside the functions: it wants the rank variables and its own settings in the environment first,
and a stage that refuses its input should not wait a second for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gnnscale.architectures.memory import BUCKET_NUMBERS
from gnnscale.atoms.graph import AtomGraphs, Properties, to_device
from gnnscale.contract.settings import OptimSettings
from gnnscale.contract.stage_spec import Runtime
from gnnscale.machine import accelerator
from gnnscale.models.potential import Normalised, Potential
from gnnscale.train.checkpoint import TensorShapes
from gnnscale.train.engine import Engine, MicroBatch, running_mean_share
from gnnscale.train.loss import PARTS, compute_local_loss, sum_penalties
from gnnscale.train.muon import BETAS, Muon
from gnnscale.train.normalisation import Normalisation
from gnnscale.train.process_group import reduce_sum, start_deepspeed


class DeepSpeedEngine(Engine):
    """A model with its optimiser under DeepSpeed: ZeRO, clipping, gradient reduction, and its state by name."""

    name = "DeepSpeed"

    def __init__(self, model: Potential, groups: list[dict], optim: OptimSettings, runtime: Runtime):
        start_deepspeed()
        import deepspeed

        self.optim, self.stage, self.clip, self.decay = optim, runtime.zero_stage, optim.clip, optim.ema
        self.named = dict(model.named_parameters())
        self.hidden = {id(p) for group in groups for p in group["params"] if group.get("muon")}
        parameters = sum(p.numel() for p in self.named.values())
        if runtime.activation_checkpointing:
            for layer in model.backbone.layers:
                layer.forward = functools.partial(
                    checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
                )
        if optim.precision == "bf16":
            # Inside of the engine: on a GPU, DeepSpeed switches off an autocast that it finds around itself.
            autocast = torch.autocast(accelerator.detect_kind(), dtype=torch.bfloat16)
            model.forward = autocast(model.forward)  # type: ignore[method-assign] # of this one network
        if self.stage == 3:  # layers use the weights of their children without calling these, so they come as one
            deepspeed.utils.set_z3_leaf_modules(model, list({type(layer) for layer in model.backbone.layers}))
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": optim.clip if self.stage else 0.0,  # without ZeRO it is done in `step`
            "zero_optimization": {
                "stage": self.stage,
                "reduce_bucket_size": min(parameters, BUCKET_NUMBERS),
                "allgather_bucket_size": min(parameters, BUCKET_NUMBERS),
                "stage3_prefetch_bucket_size": min(parameters, BUCKET_NUMBERS),
                "stage3_param_persistence_threshold": min(100_000, parameters // 1000),  # kept whole on each rank
            },
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1_000_000_000,
        }
        if optim.optimizer == "muon":
            optimizer: torch.optim.Optimizer = Muon(groups, optim.weight_decay)
        else:  # AdamW of torch and not DeepSpeed's, whose C++ would be compiled at the first start
            optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=optim.weight_decay, fused=True)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        self.device = self.engine.device  # where the weights are from here on
        self.normalisation = Normalisation(model.references, float(model.energy_scale), float(model.force_scale))
        self.mean = {name: p.detach().clone() for name, p in self.named.items()} if self.decay else {}

    def __call__(self, *inputs: object) -> Normalised:
        return self.engine(*inputs)

    def learn(self, micro: Sequence[MicroBatch], counts: np.ndarray) -> Tensor:
        sums = torch.zeros(len(PARTS), dtype=torch.float64, device=self.device)
        for part in micro:
            penalties = self.penalties(*part())
            loss = compute_local_loss(penalties, counts, self.optim, torch.distributed.get_world_size())
            self.backward(loss, last=part is micro[-1])
            sums += penalties.detach()
        return sums

    def penalties(self, graphs: AtomGraphs, labels: Properties) -> Tensor:
        """Return the sums of penalties (3,) of a batch, with a graph where gradients are wanted."""
        graphs, labels = to_device(graphs, self.device), to_device(labels, self.device)
        return sum_penalties(self, self.normalisation, graphs, labels, self.optim)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add to the gradient, which is averaged over the ranks when the `last` micro-batch of a step is done."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss)

    def step(self, rate: float, number: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        if self.stage:
            self.engine.step()
            norm = self.engine.get_global_grad_norm()  # DeepSpeed leaves out the update where it is not finite
        else:
            learning = [p for p in self.named.values() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm([p.grad for p in learning if p.grad is not None])
            if not norm.isfinite():
                return float(norm)
            torch.nn.utils.clip_grads_with_norm_(learning, self.clip, norm)
            self.engine.step()
        if self.decay:
            share = running_mean_share(self.decay, number)
            torch._foreach_lerp_(list(self.mean.values()), [p.detach() for p in self.named.values()], share)
        return float(norm)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, mean in self.mean.items():
            weight = self.named[name]
            held = weight.clone()
            weight.copy_(mean)
            mean.copy_(held)

    def weights(self) -> dict[str, Tensor]:
        state = self.engine.module.state_dict()
        return {name: self._whole(self.named[name]) if name in self.named else t for name, t in state.items()}

    # ------------------------------------------------------------------------- the state, whole and by name
    def slots(self, p: Tensor) -> tuple[str, ...]:
        return ("momentum",) if id(p) in self.hidden else ("exp_avg", "exp_avg_sq")

    def layout(self) -> TensorShapes:
        return [
            (f"{name}|{key}", tuple(getattr(p, "ds_shape", p.shape)))
            for name, p in self.named.items()
            for key in self._keys(p)
        ]

    def _keys(self, p: Tensor) -> tuple[str, ...]:
        return ("weight", *self.slots(p), *(("mean",) if self.decay else ()))

    def tensors(self) -> Iterator[Tensor]:
        for name, p in self.named.items():
            for key in self._keys(p):
                yield self.mean[name] if key == "mean" else self._whole(p, key)

    def _whole(self, p: Tensor, key: str = "weight") -> Tensor:
        from deepspeed import utils

        if self.stage == 3:
            return utils.safe_get_full_fp32_param(p) if key == "weight" else utils.safe_get_full_optimizer_state(p, key)
        if self.stage == 0 or key == "weight":
            return p.detach() if key == "weight" else self.optimizer.state[p][key]
        whole = torch.zeros_like(p)
        for own, place in self._piece(p, key):
            whole.view(-1)[place] = own
        return reduce_sum(whole)

    def _piece(self, p: Tensor, key: str) -> list[tuple[Tensor, slice]]:
        """Return this rank's part of an optimiser's tensor under ZeRO 1 or 2, if any, and its place in `p`.

        DeepSpeed's own safe_get_full_optimizer_state failed in 0.19.8 with two groups of parameters: it links states
        after the first group's step, when the second has none.
        """
        if (piece := p._hp_mapping) is None:  # type: ignore[attr-defined] # DeepSpeed sets it
            return []
        stored, place = piece.hp_fragment_address, piece.lp_fragment_address
        state = self.optimizer.optimizer.state[self._flat()[piece.param_group_index]]
        return [(state[key][stored.start : stored.start + stored.numel], slice(place.start, place.start + place.numel))]

    def load(self, read: Callable[[str], Tensor], steps: int) -> None:
        torch_state = self.optimizer.optimizer.state if self.stage else self.optimizer.state
        for flat in self._flat():
            new = {key: torch.zeros_like(flat) for key in self.slots(flat)}
            if "exp_avg" in new:
                new["step"] = torch.tensor(float(steps), device=flat.device)
            torch_state[flat] = new
        for name, p in self.named.items():
            for key in self.slots(p):
                self._put(p, key, read(f"{name}|{key}").to(self.device))
        for name, mean in self.mean.items():
            mean.copy_(read(f"{name}|mean"))

    def _flat(self) -> list[Tensor]:
        """Return the optimiser's tensors: the parameters themselves, or this rank's partitions of them."""
        if self.stage == 0:
            return list(self.named.values())
        zero = self.optimizer
        return zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups

    def _put(self, p: Tensor, key: str, value: Tensor) -> None:
        """Write this rank's piece of an optimiser's tensor."""
        from deepspeed import utils

        if self.stage == 0:
            self.optimizer.state[p][key].copy_(value)
        elif self.stage == 3:  # equal pieces, the last of them padded
            size = p.ds_tensor.numel()  # type: ignore[attr-defined] # DeepSpeed sets it
            padded = torch.nn.functional.pad(value.flatten(), (0, size * self.engine.world_size - value.numel()))
            begin = size * torch.distributed.get_rank()
            utils.safe_set_local_optimizer_state(p, padded[begin : begin + size], key)
        else:
            for own, place in self._piece(p, key):
                own.copy_(value.view(-1)[place])
