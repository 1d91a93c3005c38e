"""The model under the compiled library, on CPUs: gradient and update of a step are a few calls on flat arrays.

Any number of ranks: their gradients are summed by torch.distributed. Nothing here imports DeepSpeed or an optimiser of
PyTorch, as these take seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.contract.settings import OptimSettings
from gnnscale.models.compiled import Compiled, Scales, address
from gnnscale.models.potential import Potential
from gnnscale.native.packing import Place, count_room
from gnnscale.train.checkpoint import TensorShapes
from gnnscale.train.engine import Engine, MicroBatch, running_mean_share
from gnnscale.train.loss import part_weights
from gnnscale.train.muon import BETAS, MOMENTUM, update_size

CLIP_EPSILON = 1e-6  # as torch.nn.utils has it


class NativeEngine(Engine):
    """A compiled network, its weights, gradient, moments and running mean, each of them one flat array."""

    name = "native"
    device = torch.device("cpu")

    def __init__(self, model: Potential, groups: list[dict], optim: OptimSettings, compiled: Compiled):
        self.model, self.compiled, self.optim, self.packing = model, compiled, optim, compiled.packing
        self.factors = tuple(group["rate_factor"] for group in groups)
        self.scales = Scales(model.references, float(model.energy_scale), float(model.force_scale))
        self.muon = optim.optimizer == "muon"
        self.flat = self.packing.pack(dict(model.named_parameters()), compiled.dtype)
        # Muon's momentum lies in the first, where the hidden matrices are.
        self.gradient, self.first, self.second = (self.packing.empty(compiled.dtype) for _ in range(3))
        self.mean = self.flat.clone() if optim.ema else None

    def learn(self, micro: Sequence[MicroBatch], counts: np.ndarray) -> Tensor:
        factors = part_weights(self.optim) / np.maximum(counts, 1)
        sums = np.zeros(3)
        for k, part in enumerate(micro):
            sums += self.compiled.learn(
                self.flat, self.gradient, part(), self.scales, self.optim.loss, factors, add=k > 0
            )
        if torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(self.gradient)
        return torch.from_numpy(sums)

    def penalties(self, graphs: AtomGraphs, labels: Properties) -> Tensor:
        batch, weights = (graphs, labels), part_weights(self.optim)
        return torch.from_numpy(self.compiled.learn(self.flat, None, batch, self.scales, self.optim.loss, weights))

    def step(self, rate: float, number: int) -> float:
        library = self.compiled.library
        norm = library.native_norm(address(self.gradient), self.packing.total)
        if not np.isfinite(norm):
            return float(norm)
        factor = min(1.0, self.optim.clip / (norm + CLIP_EPSILON))
        rates = [rate * each for each in self.factors]
        hidden = self.packing.hidden
        if self.muon:
            self._step_matrices(rates[0], factor)
        skipped = hidden if self.muon else 0
        library.native_adamw(
            *(hidden - skipped, self.packing.total - skipped),
            *(address(flat[skipped:]) for flat in (self.flat, self.gradient, self.first, self.second)),
            *(*rates, self.optim.weight_decay, *BETAS, factor, number),
        )
        if self.mean is not None:
            share = running_mean_share(self.optim.ema, number)
            library.native_lerp(address(self.mean), address(self.flat), self.packing.total, share)
        return float(norm)

    def _step_matrices(self, rate: float, factor: float) -> None:
        for place in self.packing.places:
            if self._is_hidden(place):
                self.compiled.library.native_muon(
                    *(count_room(place.rows), count_room(place.columns)),
                    *(address(flat[place.offset :]) for flat in (self.flat, self.gradient, self.first)),
                    *(rate * update_size(place.shape), 1 - rate * self.optim.weight_decay, MOMENTUM, factor),
                )

    def _is_hidden(self, place: Place) -> bool:
        return place.offset < self.packing.hidden

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if self.mean is None:
            yield
            return
        self.flat, self.mean = self.mean, self.flat
        try:
            yield
        finally:
            self.flat, self.mean = self.mean, self.flat

    def weights(self) -> dict[str, Tensor]:
        return self.model.state_dict() | dict(self.packing.unpack(self.flat))

    # ------------------------------------------------------------------------- the state, whole and by name
    def arrays(self, place: Place) -> dict[str, Tensor]:
        """Return key -> the flat array in which that tensor of a parameter lies."""
        moments = {"exp_avg": self.first, "exp_avg_sq": self.second}
        if self.muon and self._is_hidden(place):
            moments = {"momentum": self.first}
        return {"weight": self.flat, **moments, **({} if self.mean is None else {"mean": self.mean})}

    def layout(self) -> TensorShapes:
        return [(f"{place.name}|{key}", place.shape) for place in self.packing.places for key in self.arrays(place)]

    def tensors(self) -> Iterator[Tensor]:
        for place in self.packing.places:
            for flat in self.arrays(place).values():
                yield place.take(flat)

    def load(self, read: Callable[[str], Tensor], steps: int) -> None:
        for place in self.packing.places:
            for key, flat in self.arrays(place).items():
                place.put(flat, read(f"{place.name}|{key}"))
